"""Resources: the annotations by which a step asks for one, and the plan for making it."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, cast, final

import attrs

from sluicegate._annotations import (
    UNRESOLVED,
    extras_of,
    is_context,
    resolve,
    resolve_all,
    unbound,
)
from sluicegate._definition.configuration import read_file, read_part
from sluicegate._definition.local_names import keep_names, kept_names, resolve_fields
from sluicegate._errors import WorkflowValidationError


if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

Scope = Literal["step", "run", "workflow"]

#: From the narrowest to the widest; a resource can need those of the same and of wider scopes.
SCOPES: tuple[Scope, ...] = ("step", "run", "workflow")


@final
@attrs.frozen
class Resource:
    """Asks for an object that a factory makes: ``llm: Annotated[LLM, Resource(make_llm)]``.

    The factory is a function, an async function, a generator or async generator function that
    yields once, or a class. If it returns a context manager, the manager is entered, and the
    value of entering it is the resource. It is exited when the scope ends, with the exception
    that ended the scope. An object with an ``acquire`` method is treated as a lock and injected
    unopened. The parameters of a factory are filled like those of a step: with other resources
    and with the ``Context``.

    A resource is identified by its factory; a bound method by its object and its function.
    Within a scope it is made once, even if several steps ask for it at the same time.

    Args:
        factory: The callable that makes it.
        scope: How long it is kept: one invocation of a step (``"step"``), the run (``"run"``),
            or the block ``async with workflow:`` (``"workflow"``).
        cache: False means the same as ``scope="step"``.
        enter: Whether a context manager is entered; with False the manager itself is injected.
        grace: Seconds that closing it can take. It is shielded from cancellation for this time,
            and cancelled afterwards. If several steps ask for one resource, the first one decides.

    Raises:
        WorkflowValidationError: An argument is not valid.
    """

    factory: Callable[..., Any] = attrs.field(eq=id)
    scope: Scope = attrs.field(default="run", kw_only=True)
    cache: bool = attrs.field(default=True, kw_only=True)
    enter: bool = attrs.field(default=True, kw_only=True)
    grace: float = attrs.field(default=5.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not callable(self.factory):
            called = isinstance(self.factory, types.CoroutineType | types.GeneratorType)
            hint = ", without calling it" if called or inspect.isasyncgen(self.factory) else ""
            msg = (
                f"Resource was given {self.factory!r}, which cannot be called; expected a "
                f"function or a class: `Resource(make_it)`{hint}"
            )
            raise WorkflowValidationError(msg)
        keep_names(self.factory)
        name = self.name
        if self.scope not in SCOPES:
            msg = f"Resource({name}, scope={self.scope!r}); expected 'step', 'run' or 'workflow'"
            raise WorkflowValidationError(msg)
        if not self.cache:
            if self.scope == "workflow":
                msg = (
                    f"Resource({name}, scope='workflow', cache=False) asks both to keep the "
                    f"resource and not to keep it; expected `Resource({name}, scope='workflow')` or "
                    f"`Resource({name}, scope='step')`"
                )
                raise WorkflowValidationError(msg)
            object.__setattr__(self, "scope", "step")
        grace: object = self.grace
        if not (isinstance(grace, int | float) and grace > 0):
            msg = f"Resource({name}, grace={grace!r}); expected seconds above 0"
            raise WorkflowValidationError(msg)
        if not self.enter and _generates(self.factory):
            msg = (
                f"Resource({name}, enter=False), but {name} is a generator, which yields nothing "
                f"until it is entered; expected `Resource({name})`, or a function that "
                "returns the value"
            )
            raise WorkflowValidationError(msg)

    @property
    def name(self) -> str:
        """The name of the factory."""
        return _name(self.factory)

    @property
    def key(self) -> Hashable:
        """The identity of the resource within its scope; valid while the factory is alive."""
        factory: Any = self.factory
        if isinstance(factory, types.MethodType):
            return (id(factory.__self__), id(factory.__func__), self.scope, self.enter)
        return (id(factory), self.scope, self.enter)


@final
@attrs.frozen
class ResourceConfig:
    """Asks for a part of a JSON or TOML file, as an object of the annotated type.

    ``db: Annotated[Settings, ResourceConfig("app.toml", "databases.main")]``. The type is an
    attrs class, a dataclass, a msgspec ``Struct``, a pydantic model, or of built-in types. The
    file is read once in a run, when a step or a factory first asks for a part of it.

    Args:
        path: The file, with the suffix ``.json`` or ``.toml``. A relative path is relative to
            the working directory.
        selector: The path of the part, with dots; a number selects from a list. None means the
            whole file.

    Raises:
        WorkflowValidationError: The suffix is a different one, or a part of the selector is empty.
            Reading raises an ``OSError`` if the file cannot be read, and a ``ValueError`` that
            names file, selector and field if the content does not fit.
    """

    path: str | os.PathLike[str]
    selector: str | None = None

    def __attrs_post_init__(self) -> None:
        if PurePath(self.path).suffix not in (".json", ".toml"):
            msg = (
                f"ResourceConfig({os.fspath(self.path)!r}) is neither JSON nor TOML by its suffix; "
                "expected a path that ends in '.json' or '.toml'"
            )
            raise WorkflowValidationError(msg)
        if self.selector is not None and not all(self.selector.split(".")):
            msg = (
                f"ResourceConfig({os.fspath(self.path)!r}, {self.selector!r}) has an empty part in "
                "its selector; expected names with dots between them, like 'databases.main'"
            )
            raise WorkflowValidationError(msg)

    @property
    def name(self) -> str:
        """The file, and the part of it."""
        at = "" if self.selector is None else f", at {self.selector!r}"
        return f"{os.fspath(self.path)}{at}"


@attrs.frozen(eq=False)
class ResourcePlan:
    """How to make one resource, as read from the signature of its factory."""

    name: str
    scope: Scope
    key: Hashable
    #: Returns the value, a context manager for it, or a coroutine that returns one of them.
    make: Callable[..., Any] = attrs.field(repr=False)
    #: The resources that it needs, by the names of the factory's parameters.
    needs: tuple[tuple[str, ResourcePlan], ...] = ()
    #: The parameter that takes the context, or None.
    context_as: str | None = None
    enter: bool = False
    grace: float = 5.0

    def walk(self) -> Iterator[ResourcePlan]:
        """Yield this plan and all plans that it needs, directly or indirectly, each once."""
        seen: set[Hashable] = set()
        todo = [self]
        while todo:
            plan = todo.pop()
            if (plan.scope, plan.key) not in seen:
                seen.add((plan.scope, plan.key))
                yield plan
                todo += [needed for _, needed in plan.needs]


def is_resource(hint: Any) -> bool:
    """Whether an annotation asks for a resource, or for a part of a configuration file."""
    return bool(_markers(hint))


def plan_resource(name: str, hint: Any) -> ResourcePlan | list[str]:
    """Plan how to fill a parameter of a step.

    Args:
        name: The name of the parameter.
        hint: Its annotation, resolved, with ``Annotated`` left in; :func:`is_resource` of it.

    Returns:
        The plan, or all faults; each text continues from the name of the step.
    """
    planner = _Planner()
    plan = planner.plan(hint, "run", f"takes {name!r} from the resource")
    return planner.problems if plan is None or planner.problems else plan


class _Planner:
    """Reads the signatures of factories, down to those that need nothing."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._known: dict[Hashable, ResourcePlan] = {}
        #: The factories that are being read, each needed by the one before.
        self._path: dict[Hashable, str] = {}

    def plan(self, hint: Any, scope: Scope, where: str) -> ResourcePlan | None:
        """Plan the resource that ``hint`` asks for in something of the given scope."""
        markers = _markers(hint)
        if len(markers) > 1:
            self.problems.append(
                f"{where} {markers[0].name}, and from {markers[1].name} as well; expected one "
                "`Resource(...)` or `ResourceConfig(...)` in an Annotated"
            )
            return None
        if not markers:
            return None
        marker = markers[0]
        if isinstance(marker, ResourceConfig):
            return _plan_config(marker, hint, "workflow" if scope == "workflow" else "run")
        where = f"{where} {marker.name}"
        if marker.key in self._path:
            names = [*self._path.values()]
            circle = [*names[[*self._path].index(marker.key) :], marker.name]
            self.problems.append(
                f"{where}, which needs itself: {' -> '.join(circle)}; expected one of them to do "
                "without the next"
            )
            return None
        if marker.key not in self._known:
            self._path[marker.key] = marker.name
            self._known[marker.key] = self._read(marker, f"{where}, which")
            del self._path[marker.key]
        return self._known[marker.key]

    def _read(self, marker: Resource, where: str) -> ResourcePlan:
        needs: list[tuple[str, ResourcePlan]] = []
        context_as: str | None = None
        for parameter, hint in self._parameters(marker.factory, where):
            name = parameter.name
            wants_context = is_context(hint)
            if not (wants_context or _markers(hint)):
                if parameter.default is parameter.empty:
                    self.problems.append(
                        f"{where} has a parameter {name!r} that nothing can fill; expected `{name}: "
                        f"Annotated[..., Resource(...)]`, `{name}: Context` or a default"
                    )
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self.problems.append(
                    f"{where} takes {name!r} by position only; expected it without the `/`, because "
                    "factories are called by keyword"
                )
            elif wants_context:
                context_as = self._take_context(marker, name, context_as, where)
            else:
                needed = self.plan(hint, marker.scope, f"{where} needs")
                if needed is not None and self._outlives(needed, marker, where):
                    needs.append((name, needed))
        return ResourcePlan(
            name=marker.name,
            scope=marker.scope,
            key=marker.key,
            make=_managed(marker.factory),
            needs=tuple(needs),
            context_as=context_as,
            enter=marker.enter,
            grace=marker.grace,
        )

    def _parameters(self, factory: Any, where: str) -> list[tuple[inspect.Parameter, Any]]:
        try:
            signature = inspect.signature(factory)
        except ValueError:  # some built-in types have none; they are called without arguments
            return []
        listed = [
            p
            for p in signature.parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if not listed:
            return []
        hints: dict[str, Any] = {}
        faults: list[Exception] = []
        for annotated in _annotated(factory):
            try:
                hints |= _hints(annotated)
            except UNRESOLVED as error:
                faults.append(error)
        if faults and not all(p.name in hints for p in listed):
            self.problems.append(
                f"{where} has an annotation that cannot be resolved ({faults[0]}); expected every "
                "name in it to be importable from its module, and not only under `if TYPE_CHECKING`"
            )
            return []
        return [(p, hints.get(p.name)) for p in listed]

    def _take_context(
        self, marker: Resource, name: str, before: str | None, where: str
    ) -> str | None:
        if marker.scope == "workflow":
            self.problems.append(
                f"{where} takes the context as {name!r}, but has the scope of the workflow, which "
                f"outlives every run; expected `Resource({marker.name}, scope='run')`"
            )
        elif before is not None:
            self.problems.append(
                f"{where} takes the context twice, as {before!r} and {name!r}; expected one "
                "parameter `ctx: Context`"
            )
        return name

    def _outlives(self, needed: ResourcePlan, marker: Resource, where: str) -> bool:
        if SCOPES.index(needed.scope) >= SCOPES.index(marker.scope):
            return True
        self.problems.append(
            f"{where} has the scope of the {marker.scope} and needs {needed.name}, which has only "
            f"that of the {needed.scope}; expected `Resource({needed.name}, scope={marker.scope!r})` in it, "
            f"or `Resource({marker.name}, scope={needed.scope!r})`"
        )
        return False


# -- annotations and factories ------------------------------------------------------------------


def _markers(hint: Any) -> list[Resource | ResourceConfig]:
    return [m for m in extras_of(hint) if isinstance(m, Resource | ResourceConfig)]


def _name(factory: Any) -> str:
    factory = unbound(factory)
    return str(getattr(factory, "__name__", type(factory).__name__))


def _called(factory: Any) -> Any:
    """Return the function that runs when ``factory``, which is not a class, is called."""
    factory = unbound(factory)
    if hasattr(factory, "__code__") or inspect.isroutine(factory):
        return factory
    return type(factory).__call__


def _generates(factory: Any) -> str:
    """Return ``"sync"`` or ``"async"`` for a generator function of that kind, or ``""``."""
    if isinstance(factory, type):
        return ""
    function = _called(factory)
    if inspect.isasyncgenfunction(function):
        return "async"
    return "sync" if inspect.isgeneratorfunction(function) else ""


def _managed(factory: Any) -> Callable[..., Any]:
    match _generates(factory):
        case "async":
            return asynccontextmanager(factory)
        case "sync":
            return contextmanager(factory)
        case _:
            return cast("Callable[..., Any]", factory)


def _annotated(factory: Any) -> list[Any]:
    """Return the holders of the annotations of a factory's parameters; the last one decides."""
    if isinstance(factory, type):
        # A model of pydantic has its fields in the class, every other kind in its __init__.
        return [factory, factory.__init__]  # type: ignore[misc]
    return [_called(factory)]


def _hints(annotated: Any) -> dict[str, Any]:
    if isinstance(annotated, type):
        return resolve(
            annotated, {n: v for b in annotated.__mro__ for n, v in kept_names(b).items()}
        )
    notes = dict(getattr(annotated, "__annotations__", {}))
    notes.pop("return", None)  # it is not used, and often cannot be resolved
    function = inspect.unwrap(annotated)
    return resolve_all(notes, getattr(function, "__globals__", {}), kept_names(function))


def _plan_config(marker: ResourceConfig, hint: Any, scope: Scope) -> ResourcePlan:
    kind = typing.get_args(hint)[0]
    resolve_fields(kind)
    path = os.fspath(marker.path)
    document = ResourcePlan(
        name=path, scope=scope, key=("file", path), make=functools.partial(read_file, Path(path))
    )
    return ResourcePlan(
        name=marker.name,
        scope=scope,
        key=("config", path, marker.selector, id(kind)),
        make=functools.partial(read_part, marker.name, marker.selector, kind),
        needs=(("document", document),),
    )
