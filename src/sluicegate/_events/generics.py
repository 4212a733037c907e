"""Generic event classes: type variables, and a subclass for each list of arguments.

``Chunk[Text]`` is a subclass of the generic event ``Chunk``, made once. Routing, checks and
snapshots treat it like any other class, and its fields have the annotations of its arguments.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, Union, cast
from weakref import WeakValueDictionary

from sluicegate._annotations import UNRESOLVED, is_union, resolve_all


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    #: The replacements of type variables.
    Meaning: TypeAlias = Mapping[Any, Any]


def allow_arguments(cls: Any) -> None:
    """Make ``cls[...]`` return a subclass; ``cls`` is derived from ``Generic``."""
    if "__sluicegate_origin__" not in cls.__dict__:
        cls.__sluicegate_made__ = WeakValueDictionary()
        cls.__class_getitem__ = classmethod(_with_arguments)


def origin_of(cls: type) -> type | None:
    """Return ``Chunk`` for ``Chunk[Text]``, or None for a class without arguments."""
    return cast("type | None", cls.__dict__.get("__sluicegate_origin__"))


def named_classes(kinds: Iterable[type]) -> Iterator[type]:
    """Yield classes that have a name in a module: for ``Chunk[Text]``, ``Chunk`` and ``Text``."""
    for kind in kinds:
        origin = origin_of(kind)
        if origin is None:
            yield kind
        else:
            yield origin
            arguments: tuple[Any, ...] = kind.__dict__["__sluicegate_arguments__"]
            yield from named_classes(part for part in arguments if isinstance(part, type))


def is_without_arguments(cls: type) -> bool:
    """Whether ``cls`` is generic and has no arguments."""
    return bool(getattr(cls, "__parameters__", ())) and origin_of(cls) is None


def plain_class(hint: Any) -> Any:
    """Return the class of an annotation; that of a generic alias of an event is a subclass."""
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and hasattr(origin, "__sluicegate_made__"):
        return origin[typing.get_args(hint)]  # type: ignore[index] # a generic alias has arguments
    return hint if origin is None else origin


def meanings_of(cls: type, own: Meaning | None = None) -> dict[type, Meaning]:
    """Return the replacements of type variables for each class in the MRO of ``cls``.

    Args:
        cls: The class.
        own: The replacements for ``cls`` itself.
    """
    found: dict[type, Meaning] = {}
    todo: list[tuple[type, Meaning]] = [(cls, own or {})]
    while todo:
        at, meaning = todo.pop()
        if at in found and not meaning:
            continue
        found[at] = meaning
        bases: tuple[Any, ...] = at.__dict__.get("__orig_bases__", at.__bases__)
        for base in bases:
            origin = typing.get_origin(base)
            if origin is None:
                todo.append((base, {}))
            elif origin is not Generic and isinstance(origin, type):
                arguments = [substituted(part, meaning) for part in typing.get_args(base)]
                todo.append((origin, _meaning(origin, arguments)))
    return found


def substituted(hint: Any, meaning: Meaning) -> Any:
    """Return an annotation with the type variables in ``meaning`` replaced."""
    if not meaning:
        return hint
    if isinstance(hint, TypeVar):
        return meaning.get(hint, hint)
    if is_union(hint):
        return Union[tuple(substituted(part, meaning) for part in typing.get_args(hint))]  # noqa: UP007 - it is made of parts
    parameters = () if isinstance(hint, type) else getattr(hint, "__parameters__", ())
    if not parameters:
        return hint
    return cast("Any", hint)[tuple(meaning.get(each, each) for each in parameters)]


def fitting(event: object, kinds: Iterable[type]) -> type | None:
    """Return the class among ``kinds`` that fits an event made without arguments.

    Args:
        event: An event of a generic class: ``Chunk(value=text)``.
        kinds: Classes, some of which can be that class with arguments: ``Chunk[Text]``.

    Returns:
        The only class with that origin; of several, the only one whose annotations the values
        fit. None if there is not exactly one.
    """
    found = [kind for kind in dict.fromkeys(kinds) if origin_of(kind) is type(event)]
    if len(found) > 1:
        found = [kind for kind in found if _fits(event, kind)]
    return found[0] if len(found) == 1 else None


def give_arguments(event: object, kind: type) -> None:
    """Change the class of an event to ``kind``, which is its class with arguments."""
    object.__setattr__(event, "__class__", kind)


def _fits(event: object, kind: type) -> bool:
    values = vars(event)
    for name, hint in kind.__annotations__.items():
        try:
            plain: Any = hint if isinstance(hint, types.UnionType) else plain_class(hint)
            if name in values and not isinstance(values[name], plain):
                return False
        except TypeError:  # not a class
            continue
    return True


# -- a class with arguments ------------------------------------------------------------------------


def _with_arguments(cls: Any, arguments: Any) -> Any:
    """Return ``cls[arguments]``: a subclass, or an alias if they contain a type variable."""
    alias = Generic.__dict__["__class_getitem__"].__get__(None, cls)(arguments)
    if alias.__parameters__:
        return alias
    given: tuple[Any, ...] = alias.__args__
    if all(part is Any for part in given):
        return cls
    made: WeakValueDictionary[Any, type] = cls.__sluicegate_made__
    try:
        known = made.get(given)
    except TypeError:  # an argument is not hashable
        given = tuple(map(_hashable, given))
        known = made.get(given)
    if known is None:
        known = made[given] = _make(cls, alias.__args__)
    return known


def _hashable(part: Any) -> Any:
    try:
        hash(part)
    except TypeError:
        return repr(part)
    return part


def _make(cls: Any, arguments: tuple[Any, ...]) -> type:
    meaning = _meaning(cls, arguments)
    bases = [cls]
    for base in cls.__dict__.get("__orig_bases__", ()):
        outer = typing.get_origin(base)
        # A Big[int] of `class Big(Chunk[T])` is a Chunk[int].
        if hasattr(outer, "__sluicegate_made__"):
            bases.append(plain_class(substituted(base, meaning)))
    shown = f"[{', '.join(map(_shown, arguments))}]"
    made = types.new_class(
        cls.__name__,  # with brackets, attrs 23 could not read it
        tuple(dict.fromkeys(bases)),
        {"open": cls._open},
        lambda body: body.update(
            __module__=cls.__module__,
            __doc__=cls.__doc__,
            __qualname__=f"{cls.__qualname__}{shown}",
            __sluicegate_origin__=cls,
            __sluicegate_arguments__=arguments,
        ),
    )
    made.__name__ = f"{cls.__name__}{shown}"
    # After attrs has read the class, because these are fields of the parent, not new ones.
    made.__annotations__ = _annotations(cls, meaning)
    if cls.__reduce__ is object.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__:
        made.__reduce__ = _reduce  # type: ignore[method-assign, assignment]
    return made


def _meaning(cls: Any, arguments: Iterable[Any]) -> Meaning:
    parameters: tuple[Any, ...] = getattr(cls, "__parameters__", ())
    given = tuple(arguments)
    if len(parameters) != len(given) or not all(isinstance(p, TypeVar) for p in parameters):
        return {}
    return dict(zip(parameters, given, strict=True))


def _annotations(cls: type, meaning: Meaning) -> dict[str, Any]:
    """Return the annotations of all fields with their arguments.

    An annotation that cannot be resolved yet is left out, so the parent's applies.
    """
    found: dict[str, Any] = {}
    meanings = meanings_of(cls, meaning)
    for base in reversed(cls.__mro__):
        for name, hint in inspect.get_annotations(base).items():
            found[name] = _resolved(base, name, hint, meanings.get(base, {}))
    return {name: hint for name, hint in found.items() if hint is not _UNKNOWN}


_UNKNOWN: Any = object()


def _resolved(base: type, name: str, hint: Any, meaning: Meaning) -> Any:
    module = vars(sys.modules.get(base.__module__, types))
    names = {**{each.__name__: each for each in meaning}, **vars(base)}
    try:
        return substituted(resolve_all({name: hint}, module, names)[name], meaning)
    except UNRESOLVED:
        return _UNKNOWN


def _shown(argument: Any) -> str:
    if argument is Ellipsis:
        return "..."
    is_class = isinstance(argument, type) and not typing.get_args(argument)
    return argument.__name__ if is_class else str(argument).replace("typing.", "")


def _reduce(self: Any) -> Any:
    """Pickle and copy an event by its generic class and its arguments, which have names."""
    cls = cast("Any", type(self))
    if "__sluicegate_origin__" not in vars(cls):  # a subclass, which has a name
        return object.__reduce_ex__(self, 2)
    fields: dict[str, Any] = self.__dict__
    return _rebuild, (cls.__sluicegate_origin__, cls.__sluicegate_arguments__), dict(fields)


def _rebuild(origin: Any, arguments: Any) -> Any:
    return object.__new__(origin[arguments])
