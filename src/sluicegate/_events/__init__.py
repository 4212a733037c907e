"""Events: frozen attrs classes whose fields are their annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, cast, dataclass_transform

import attrs
from attrs.exceptions import FrozenInstanceError

from sluicegate._annotations import check_types
from sluicegate._errors import brief, was_a
from sluicegate._events.generics import allow_arguments
from sluicegate._events.methods import add_attributes, descriptors_of, refuse_shadows


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


#: Attributes that Python sets when it raises an event that is also an exception.
_OF_EXCEPTIONS = ("__cause__", "__context__", "__traceback__", "__suppress_context__", "__notes__")
_MUTABLE = (list, dict, set, bytearray)


def _close_traps(_cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Copy mutable defaults for each event, and leave ``_private`` fields out of the constructor."""
    closed: list[attrs.Attribute[Any]] = []
    for field in fields:
        default: Any = field.default
        if isinstance(default, _MUTABLE):
            field = field.evolve(default=attrs.Factory(default.copy))
        if field.name.startswith("_"):
            field = field.evolve(init=False)
        closed.append(field)
    return closed


def _explain(cls: type[Event], values: dict[str, Any]) -> str | None:
    """Return the error in a constructor call, or None where the call itself is right."""
    fields = {f.alias: f for f in attrs.fields(cls) if f.init}
    call = f"{cls.__name__}({', '.join(f'{name}=...' for name in fields)})"
    for name in values:
        if name not in fields:
            from difflib import get_close_matches  # noqa: PLC0415 - only bad calls need it

            near = get_close_matches(name, fields, 1)
            meant = f", did you mean {near[0]!r}?" if near else ";"
            return f"{cls.__name__} has no field {brief(name)}{meant} expected {call}"
    missing = [n for n, f in fields.items() if f.default is attrs.NOTHING and n not in values]
    if missing:
        lacks = ", ".join(repr(name) for name in missing)
        return f"{cls.__name__} lacks {lacks}; expected {call}"
    return None


def _make_init(cls: type[Event], init: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor of ``cls``: that of attrs, with open fields and better messages."""
    fields = attrs.fields(cls)
    is_bare = cls._open and not fields and not cls._methods
    if is_bare and not hasattr(cls, "__attrs_post_init__"):
        return Event.__init__
    made = _plain_init(cls, fields) if _is_plain(cls, fields) else _careful_init(cls, init)
    made.__module__ = cls.__module__
    made.__name__ = "__init__"
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__wrapped__ = init  # type: ignore[attr-defined] # for its signature
    return made


def _is_plain(cls: type[Event], fields: Sequence[Any]) -> bool:
    """Whether the constructor of ``cls`` only sets fields to the given values."""
    if cls._open or cls._validates or issubclass(cls, BaseException):
        return False
    if hasattr(cls, "__attrs_pre_init__") or hasattr(cls, "__attrs_post_init__"):
        return False
    return all(
        field.init
        and field.converter is None
        and field.validator is None
        and not getattr(field.default, "takes_self", False)
        for field in fields
    )


def _plain_init(cls: type[Event], fields: Sequence[Any]) -> Callable[..., None]:
    """Return a constructor as attrs would write it, which also explains a wrong call.

    A run makes an event for every hop, so the constructor contains no second call. It sets fields
    with ``object.__setattr__``, because an event that uses its ``__dict__`` is half as large again.
    """

    def refuse(values: dict[str, Any]) -> None:
        given = {name: value for name, value in values.items() if value is not attrs.NOTHING}
        raise TypeError(_explain(cls, given))

    names: dict[str, Any] = {
        "_sluicegate_missing": attrs.NOTHING,
        "_sluicegate_refuse": refuse,
        "_sluicegate_set": object.__setattr__,
    }
    parameters = ""
    making: list[str] = []
    setting: list[str] = []
    required: list[str] = []
    for number, field in enumerate(fields):
        default, alias = f"_sluicegate_{number}", field.alias
        parameters += f", {alias}={default}"
        names[default] = field.default
        if field.default is attrs.NOTHING:
            required.append(alias)
        elif isinstance(field.default, attrs.Factory):  # type: ignore[arg-type] # it is a class
            making.append(f"    if {alias} is {default}: {alias} = {default}.factory()")
        setting.append(f"    _sluicegate_set(self, {field.name!r}, {alias})")
    checks = "".join(f" or {alias} is _sluicegate_missing" for alias in required)
    values = "".join(f", {alias!r}: {alias}" for alias in required)
    lines = [
        f"def __init__(self, /{', *' if fields else ''}{parameters}, **_sluicegate_others):",
        f"    if _sluicegate_others{checks}:",
        f"        _sluicegate_refuse({{**_sluicegate_others{values}}})",
        *making,
        *setting,
    ]
    code = compile("\n".join(lines), f"<constructor of {cls.__qualname__}>", "exec")
    exec(code, names)  # noqa: S102 - nothing but names of fields goes into it
    return cast("Callable[..., None]", names["__init__"])


def _careful_init(cls: type[Event], init: Callable[..., None]) -> Callable[..., None]:
    declared = frozenset(f.alias for f in attrs.fields(cls) if f.init)
    is_open = cls._open
    validates = cls._validates

    def build(self: Event, /, **values: Any) -> None:
        try:
            init(self, **values)
        except TypeError as error:
            message = _explain(cls, values)
            if message is None:
                raise
            raise TypeError(message) from error

    private = frozenset(f.name for f in attrs.fields(cls) if not f.init)
    methods = cls._methods - declared

    def build_with_care(self: Event, /, **values: Any) -> None:
        for name in private.intersection(values):
            msg = f"{cls.__name__}.{name} is private, and not set from outside"
            raise TypeError(msg)
        for name in methods.intersection(values):
            msg = f"{cls.__name__}.{name} is a method; expected another name for the field"
            raise TypeError(msg)
        build(self, **{k: v for k, v in values.items() if k in declared or not is_open})
        if is_open:
            self.__dict__.update((k, v) for k, v in values.items() if k not in declared)
        if validates:
            check_types(cls, self.__dict__)

    return build_with_care if is_open or validates else build


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(attrs.field,))
class Event:
    """The input and output of steps: a frozen object whose fields are its annotations.

    A subclass with fields accepts exactly these fields, as keywords. It is an attrs class:
    ``attrs.field`` sets options, and ``attrs.evolve`` and ``attrs.asdict`` work. A subclass
    without fields is *open*: it accepts any keyword and stores it as an attribute.
    ``class E(Event, open=True)`` accepts both. The constructor checks types only with
    ``class E(Event, validate=True)``; data from outside is always checked.

    Read a field as ``event.name``, ``event["name"]`` or ``event.get("name", default)``. Events
    compare by identity. Every step that takes an event gets the same object.

    Raises:
        TypeError: A field is missing or unknown (the message suggests a similar name), or, with
            ``validate=True``, has the wrong type.
    """

    #: The type variables of a generic class without arguments.
    __parameters__: ClassVar[tuple[Any, ...]] = ()
    _open: ClassVar[bool] = True
    _validates: ClassVar[bool] = False
    #: The public methods and properties that users define.
    _methods: ClassVar[frozenset[str]] = frozenset()
    #: The properties that keep their value in the instance.
    _caching: ClassVar[frozenset[str]] = frozenset()
    #: Whether an instance may hold more than its fields.
    _holds_more: ClassVar[bool] = False

    # attrs makes every subclass one of its classes; Event itself has no fields to declare.
    if TYPE_CHECKING:
        __attrs_attrs__: ClassVar[tuple[attrs.Attribute[Any], ...]]
    else:
        __attrs_attrs__ = ()

    def __init_subclass__(cls, *, open: bool | None = None, validate: bool | None = None) -> None:  # noqa: A002
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            msg = (
                f"{cls.__name__} defines __init__, which its fields make for it; expected fields "
                "as annotations, and __attrs_post_init__ for further work with them"
            )
            raise TypeError(msg)
        if not cls.__module__.startswith("sluicegate."):
            from sluicegate._events.idioms import translate  # noqa: PLC0415 - not at start-up

            translate(cls)
        body = dict(vars(cls))
        attrs.define(
            cls,
            slots=False,
            frozen=True,
            kw_only=True,
            eq=False,
            repr=False,
            init=True,
            field_transformer=_close_traps,
        )
        del cls.__setattr__, cls.__delattr__  # the errors of attrs' methods name no field
        for name in ("__eq__", "__hash__", "__repr__"):  # otherwise @dataclass sets them
            setattr(cls, name, getattr(cls, name))
        refuse_shadows(cls, body)
        cls._methods, cls._caching = descriptors_of(cls)
        cls._holds_more = bool(cls._caching) or issubclass(cls, BaseException)
        declared = bool(attrs.fields(cls))
        cls._open = (not declared) if open is None else open
        if validate is not None:
            cls._validates = validate
        declared_init: Callable[..., None] = cls.__dict__["__init__"]
        cls.__init__ = _make_init(cls, declared_init)  # type: ignore[method-assign]
        if Generic in cls.__mro__:
            allow_arguments(cls)

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    else:

        def __init__(self, /, **fields: Any) -> None:
            self.__dict__.update(fields)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(self, BaseException) and name in _OF_EXCEPTIONS:
            BaseException.__setattr__(self, name, value)
        else:
            _refuse_change(self, name, "set")

    def __delattr__(self, name: str) -> None:
        if isinstance(self, BaseException) and name == "__notes__":
            BaseException.__delattr__(self, name)
        else:
            _refuse_change(self, name, "deleted")

    def __getitem__(self, name: str) -> Any:
        return fields_of(self)[name]

    def __contains__(self, name: object) -> bool:
        return name in fields_of(self)

    def __iter__(self) -> Iterator[str]:
        return iter(fields_of(self))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the field called ``name``, or ``default`` if the event has no such field."""
        return fields_of(self).get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """Return declared and open fields as a new dict; the values are not copied."""
        return dict(fields_of(self))

    def __repr__(self) -> str:
        hidden = {f.name for f in attrs.fields(type(self)) if not f.repr}
        shown = ", ".join(f"{k}={v!r}" for k, v in fields_of(self).items() if k not in hidden)
        return f"{type(self).__qualname__.rpartition('<locals>.')[2]}({shown})"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: Any) -> Any:
        """Return the core schema with which pydantic validates and serializes a field of this class."""
        from sluicegate._events.in_pydantic import core_schema_of  # noqa: PLC0415 - pydantic is in use then

        return core_schema_of(cls, handler)


def fields_of(event: Event) -> dict[str, Any]:
    """Return the declared and open fields of an event by name, without its other attributes.

    The dict can be the event's own; do not change it.
    """
    cls = type(event)
    held = event.__dict__
    if not cls._holds_more:
        return held
    if not cls._open:
        return {f.name: held[f.name] for f in attrs.fields(cls) if f.name in held}
    hidden = cls._caching
    return {k: v for k, v in held.items() if k not in hidden and not k.startswith("__")}


def holds_more(cls: type[Event]) -> bool:
    """Whether the instances of an event class have other attributes in their ``__dict__``."""
    return cls._holds_more


def is_open(cls: type[Event]) -> bool:
    """Whether an event class accepts keywords that are no declared fields."""
    return cls._open


def _refuse_change(event: Event, name: str, what: str) -> NoReturn:
    cls = type(event)
    aliases = {f.name: f.alias for f in attrs.fields(cls) if f.init}
    if name in aliases:
        line = f"a new event: `attrs.evolve(event, {aliases[name]}=...)`"
    elif cls._open:
        line = f"a new event: `{cls.__name__}(**{{**event.to_dict(), {name!r}: ...}})`"
    else:
        line = f"a new event, by attrs.evolve: {cls.__name__} has no field {name!r}"
    msg = (
        f"{cls.__name__}.{name} cannot be {what}: an event is frozen, because every step that takes "
        f"it gets the same object; expected {line}"
    )
    error = FrozenInstanceError()  # which takes no text
    BaseException.__init__(error, msg)
    error.msg = msg
    raise error


add_attributes(Event)


class StartEvent(Event):
    """The first event of a run; ``run(**fields)`` makes it from its keywords."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class StopEvent(Event):
    """The event that ends a run when a step returns it.

    The result of the run is ``result`` of a plain ``StopEvent(result=...)``. An instance of a
    subclass is itself the result.
    """

    result: ClassVar[Any] = None

    if TYPE_CHECKING:

        def __init__(self, *, result: Any = None, **fields: Any) -> None: ...


class InputRequiredEvent(Event):
    """A question to a person or a program outside the run.

    When a step returns or sends it, it is published on the stream. While the question is open,
    the run is idle, not stalled.
    """

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class HumanResponseEvent(Event):
    """An answer from outside; ``handler.send_event()`` delivers it to the steps that take it."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class WorkflowFailedEvent(StopEvent):
    """The last event on the stream of a failed run.

    Attributes:
        exception: The exception that ``await handler`` raises.
        step_name: The step that raised it, or None if the engine raised it.
    """

    exception: BaseException
    step_name: str | None = None


class WorkflowTimedOutEvent(StopEvent):
    """The last event on the stream of a run that exceeded its timeout.

    Attributes:
        timeout: The timeout in seconds.
        active_steps: The names of the steps that were running.
    """

    timeout: float
    active_steps: tuple[str, ...] = ()


class WorkflowCancelledEvent(StopEvent):
    """The last event on the stream of a cancelled run.

    Attributes:
        reason: The reason, if it is known.
    """

    reason: str | None = None


class WorkflowDetachedEvent(StopEvent):
    """The last event on the stream in this process, of a durable run that continues elsewhere.

    The run has not ended: it continues from its store, in this process or in another. The event is
    never stored, so a reader that continues there does not get it.

    Attributes:
        reason: Why the part of the run in this process has ended.
    """

    reason: str


class StepFailedEvent(Event):
    """The input of a method marked ``@catch_error``: a step failed and is not retried.

    Attributes:
        step_name: The name of the failed step.
        input_event: The event that the step took.
        exception: The exception of the last attempt. If the run continued after a crash, or from a
            snapshot, before the handler had ended, it is a :exc:`RestoredError`: ask :meth:`failed_with`.
        exceptions: The exceptions of all attempts, oldest first; those from before a crash or a snapshot
            are only to be shown.
        attempts: The number of attempts.
        elapsed_seconds: Seconds from the start of the first attempt to the end of the last.
    """

    step_name: str
    input_event: Any
    exception: BaseException
    exceptions: tuple[BaseException, ...]
    attempts: int
    elapsed_seconds: float

    def failed_with(self, *classes: type[BaseException]) -> bool:
        """Return whether the last attempt failed with an exception of one of these classes.

        In contrast to ``isinstance(ev.exception, ...)``, the answer is the same when the handler runs
        again after a crash or from a snapshot; see :meth:`RestoredError.was_a`.

        Args:
            classes: Exception classes, as ``except`` takes them.

        Raises:
            TypeError: One of them is no exception class.
        """
        return was_a("failed_with", self.exception, classes)


class ChildEvent(Event):
    """An event that a child published, on the stream of its parent (``stream="tag"``).

    Attributes:
        path: The names of the child workflows that the event passed, outermost first.
        event: The event that the child published.
    """

    path: tuple[str, ...]
    event: Event


def tagged(name: str, event: Event) -> ChildEvent:
    """Return an event of the child workflow ``name`` as its parent's stream has it."""
    if isinstance(event, ChildEvent):
        return ChildEvent(path=(name, *event.path), event=event.event)
    return ChildEvent(path=(name,), event=event)


def untagged(event: Event) -> Event:
    """Return an event of a stream as the run, or the child, published it."""
    return event.event if isinstance(event, ChildEvent) else event


class ProgressEvent(Event):
    """How far a step is, as it reported with ``ctx.progress()``.

    Of one invocation, at most about ten are published a second: the newest ones.

    Attributes:
        run_id: The run of the step.
        step: The name of the step.
        invocation: The number of the invocation, which tells it from others of the step. It is that
            of the observers; in a run without any, invocations count as they first report.
        done: How much is done, in a unit of the step's choice.
        total: How much there is to do, in the same unit; None if it is not known.
        message: What the step is doing, for a person to read; it may be empty.
    """

    run_id: str
    step: str
    invocation: int
    done: float
    total: float | None = None
    message: str = ""


class InternalEvent(Event):
    """The base of the engine's own events, which only readers that ask for them get."""


class StepStateChanged(InternalEvent):
    """The start or the end of a step invocation.

    Attributes:
        name: The name of the step.
        state: ``"running"`` at the start; ``"done"`` or ``"raised"`` at the end.
        input_event_name: The class of the event that the step took.
        output_event_name: The class of the event that the step returned, at the end.
    """

    name: str
    state: str
    input_event_name: str
    output_event_name: str | None = None


class UnhandledEvent(InternalEvent):
    """An answer arrived that no step takes or waits for; the run keeps it for a later wait.

    Attributes:
        event: The answer.
    """

    event: Event


class WorkflowIdleEvent(InternalEvent):
    """No step runs and no event is pending: the run waits for an answer from outside."""
