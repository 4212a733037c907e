"""Drafts of a run's state: what is copied, what is shared, what a path leads to, what fits.

A committed state is never changed. A write builds the next one, which shares all that was not
touched.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections import Counter, OrderedDict, abc, defaultdict, deque
from typing import TYPE_CHECKING, Any, ClassVar, Union, cast, final

import attrs

from penstock._errors import WorkflowRuntimeError
from penstock._events import Event


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


#: Classes of values that hold nothing that could change.
_ATOMS: frozenset[type] = frozenset({int, str, float, bool, bytes, types.NoneType})
_DICTS = frozenset({dict, defaultdict, OrderedDict, Counter})
_LISTS = frozenset({list, deque})
_MISSING: Any = object()
_RESERVED = frozenset({"get", "to_dict", "_data", "_origin", "_memo"})


class StatePathError(WorkflowRuntimeError, LookupError, ValueError):
    """Raised when a path leads nowhere in the state, or is none."""


@final
class DictState:  # noqa: PLW1641 - it changes, so it has no hash
    """A state that declares nothing: ``state.count`` and ``state["count"]`` are the same.

    ``in``, ``len()``, iteration over the names and ``==`` work as with a dictionary. What is a
    method here (``get``, ``to_dict``) can be the name of an item, not of an attribute.

    Args:
        values: Names with their values; the mapping is copied, the values are not.
        more: More of them, as keywords.
    """

    __slots__ = ("_data", "_memo", "_origin")
    _data: dict[str, Any]
    #: In a draft: the committed names and values, and the copies made of them so far.
    _origin: dict[str, Any] | None
    _memo: dict[int, Any]

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        _put_data(self, {**(values or {}), **more})
        _put_origin(self, None)

    def __getitem__(self, name: str) -> Any:
        value = self._data[name]
        origin = self._origin
        if origin is not None and type(value) not in _ATOMS and origin.get(name, _MISSING) is value:
            self._data[name] = value = _copy(value, self._memo)
        return value

    def __getattr__(self, name: str) -> Any:
        if name[:2] != "__":
            value = self._data.get(name, _MISSING)
            if type(value) in _ATOMS:
                return value
            if value is not _MISSING:
                return self[name]
        msg = (
            f"the state has no {name!r}, it has {_listed(self._data)}; expected state.get({name!r})"
        )
        raise AttributeError(msg, name=name, obj=self)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _RESERVED or name[:2] == "__":
            msg = f"{name!r} belongs to DictState itself; expected state[{name!r}] = ..."
            raise AttributeError(msg, name=name, obj=self)
        self._data[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self._data:
            self.__getattr__(name)
        del self._data[name]

    def __setitem__(self, name: str, value: object) -> None:
        self._data[name] = value

    def __delitem__(self, name: str) -> None:
        del self._data[name]

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return self._data == other._data if isinstance(other, DictState) else NotImplemented

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value called ``name``, or ``default`` where there is none."""
        return self[name] if name in self._data else default

    def to_dict(self) -> dict[str, Any]:
        """Return names and values as a new dict; values are not copied."""
        return {name: self[name] for name in self._data}

    def __reduce__(self) -> tuple[Any, ...]:
        return DictState, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"DictState({self._data!r})"


def _make(data: dict[str, Any], origin: dict[str, Any] | None = None) -> DictState:
    made = DictState.__new__(DictState)
    _put_data(made, data)
    _put_origin(made, origin)
    return made


_get: Any = object.__getattribute__
_slots = cast("dict[str, Any]", vars(DictState))
_put_data, _put_origin, _put_memo = (_slots[n].__set__ for n in ("_data", "_origin", "_memo"))


def _copy(value: Any, memo: dict[int, Any]) -> Any:  # noqa: C901 - one for each form
    """Copy the containers and the objects with fields in a value; nothing else of it."""
    kind = cast("Any", type(value))
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    made: Any = value
    if kind in _DICTS or kind in _LISTS:
        made = memo[id(value)] = value.copy()
        for key, part in value.items() if kind in _DICTS else enumerate(value):
            if type(part) not in _ATOMS:
                made[key] = _copy(part, memo)
    elif kind is set or kind is bytearray:
        made = memo[id(value)] = value.copy()
    elif kind is tuple or (tuple in kind.__mro__ and hasattr(kind, "_make")):
        made = _tuple_like(value, [_copy(part, memo) for part in cast("tuple[Any, ...]", value)])
    elif kind is DictState:
        made = memo[id(value)] = _make(_copy(value._data, memo))
    elif (shape := _shape_of(kind)) is not None and shape.is_value:
        made = memo[id(value)] = shape.fill(kind.__new__(kind), value)
        for name in shape.fields:
            part = shape.load(made, name)
            if type(part) not in _ATOMS and part is not _MISSING:
                shape.store(made, name, _copy(part, memo))
    return made


def _tuple_like(old: Any, parts: list[Any]) -> Any:
    if all(a is b for a, b in zip(old, parts, strict=True)):
        return old
    return old._make(parts) if hasattr(old, "_make") else type(old)(parts)


class _Draft:
    """The base of the drafts of typed states: one subclass for each class of states.

    A field is copied when it is first looked at. All else is the class's own, ``__class__`` too.
    """

    __slots__ = ()
    _penstock_fields: ClassVar[frozenset[str]]

    def __init_subclass__(cls) -> None:
        """Keep the hooks of the class that it stands for out of this."""

    def __copy__(self) -> Any:
        for name in type(self)._penstock_fields:
            getattr(self, name, None)
        return _detached(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(_detached(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _detached(self).__reduce_ex__(protocol)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if type(value) in _ATOMS or name not in type(self)._penstock_fields:
            return value
        old, memo = _get(self, "_penstock_draft")
        if value is getattr(old, name, _MISSING):
            value = _copy(value, memo)
            cast("_Shape", _shape_of(type(old))).store(self, name, value)
        return value


class _Shape:
    """What the store knows of a class with declared fields; kept at the class itself."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.is_pydantic = hasattr(cls, "model_fields")
        if self.is_pydantic:
            self.fields, is_frozen = tuple(cls.model_fields), cls.model_config.get("frozen")
        elif attrs.has(cls):
            self.fields = tuple(field.name for field in attrs.fields(cls))
            is_frozen = cls.__setattr__.__name__ == "_frozen_setattrs" or issubclass(cls, Event)
        else:
            self.fields = tuple(field.name for field in dataclasses.fields(cls))
            is_frozen = cls.__dataclass_params__.frozen
        self.is_frozen = bool(is_frozen)
        #: What compares by identity is a live object, as Trio's own locks are: there is one of it.
        self.is_value: bool = not is_frozen and (
            cls.__eq__ is not object.__eq__ and cls.__new__ is object.__new__
        )
        self._slots = {
            name: slot
            for base in reversed(cls.__mro__)
            for name, slot in vars(base).items()
            if isinstance(slot, types.MemberDescriptorType)
        }
        self._hints: dict[str, Any] | None = None
        self._kind = cast("Any", None)

    def load(self, holder: Any, name: str) -> Any:
        slot = self._slots.get(name)
        if slot is None:
            return holder.__dict__.get(name, _MISSING)
        try:
            return slot.__get__(holder)
        except AttributeError:
            return _MISSING

    def store(self, holder: Any, name: str, value: object) -> None:
        slot = self._slots.get(name)
        if slot is None:
            holder.__dict__[name] = value
        else:
            slot.__set__(holder, value)

    def fill(self, made: Any, source: Any) -> Any:
        """Give ``made`` the attributes of ``source``, whose containers are shared."""
        if hasattr(source, "__dict__"):
            made.__dict__.update(source.__dict__)
        for name, slot in self._slots.items():
            value = self.load(source, name)
            if value is not _MISSING:
                # What pydantic keeps of a model beside its fields is changed by every assignment.
                slot.__set__(made, copy.copy(value) if self.is_pydantic else value)
        return made

    def draft(self, old: Any) -> Any:
        """Return what stands for ``old`` in a block."""
        if self._kind is None:
            space = {n: getattr(self.cls, n) for n in ("__module__", "__qualname__", "__doc__")}
            space |= {"__slots__": ("_penstock_draft",), "__class__": property(lambda _: self.cls)}
            space["_penstock_fields"] = frozenset(self.fields)
            bases = (_Draft, self.cls)
            meta: Any = type
            self._kind = meta.__new__(type(self.cls), self.cls.__name__, bases, space)
        made: Any = self._kind.__new__(self._kind)
        object.__setattr__(made, "_penstock_draft", (old, {}))
        return self.fill(made, old)

    def check(self, made: Any, names: Iterable[str]) -> None:
        """Check fields of a new object of this class against their annotations.

        Raises:
            TypeError: A value does not fit; the message names class, field and value.
        """
        for name in names:
            value, cause = self.load(made, name), None
            hint: Any = None if self.is_pydantic else self.hints.get(name, Any)
            if type(value) is hint:
                continue
            shown = hint.__name__ if isinstance(hint, type) else hint
            if self.is_pydantic:
                try:
                    self.cls.__pydantic_validator__.validate_assignment(made, name, value)
                    continue
                except ValueError as error:
                    shown, cause = f"valid: {error}", error
            elif _fits(hint, value):
                continue
            msg = f"{self.cls.__name__}.{name} would be {value!r:.200}, which is not {shown}"
            raise TypeError(msg) from cause

    @property
    def hints(self) -> dict[str, Any]:
        """The resolved annotations of the fields."""
        if self._hints is None:
            try:
                self._hints = typing.get_type_hints(self.cls, include_extras=True)
            except (NameError, AttributeError, TypeError, SyntaxError) as error:
                msg = (
                    f"cannot resolve the annotations of {self.cls.__qualname__}: {error}; expected "
                    f"names importable from {self.cls.__module__!r} (not under TYPE_CHECKING)"
                )
                raise TypeError(msg) from error
        return self._hints


def _shape_of(cls: Any) -> _Shape | None:
    shape: _Shape | None = cls.__dict__.get("_penstock_shape")
    marks = ("__attrs_attrs__", "__dataclass_fields__", "__pydantic_validator__")
    if shape is None and any(hasattr(cls, mark) for mark in marks) and not issubclass(cls, _Draft):
        shape = _Shape(cls)
        type.__setattr__(cls, "_penstock_shape", shape)
    return shape


def _fits(hint: Any, value: Any) -> bool:  # noqa: PLR0911, C901 - one for each form
    """Whether a value is of a type, as type checkers mean it; nothing is converted."""
    hint = getattr(hint, "__supertype__", hint)  # a NewType's
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        if hint is None or hint is float:
            return value is None if hint is None else isinstance(value, float | int)
        if not isinstance(hint, type) or hint is Any:
            return True  # a form that says nothing about values
        try:
            return isinstance(value, dict if typing.is_typeddict(hint) else hint)
        except TypeError:  # a protocol that cannot be asked
            return True
    if origin is typing.Annotated:
        return _fits(args[0], value)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in args)
    if origin is typing.Literal:
        return any(value == part and type(value) is type(part) for part in args)
    if not isinstance(origin, type) or not isinstance(value, origin):
        return not isinstance(origin, type)
    if origin is tuple and args[-1:] != (...,):
        parts = cast("tuple[Any, ...]", value)
        return len(parts) == len(args) and all(map(_fits, args, parts))
    if isinstance(value, abc.Mapping) and len(args) == 2:
        pairs = cast("Mapping[Any, Any]", value)
        return _all_fit(args[0], pairs) and _all_fit(args[1], pairs.values())
    if isinstance(value, list | tuple | set | frozenset | deque) and args:
        return _all_fit(args[0], cast("Iterable[Any]", value))
    return True


def _all_fit(hint: Any, values: Iterable[Any]) -> bool:
    if hint in _ATOMS:  # look at each class once: there may be very many values
        return all(
            issubclass(k, (float, int) if hint is float else hint) for k in set(map(type, values))
        )
    return all(_fits(hint, value) for value in values)


def _detached(value: Any) -> Any:
    """Return a draft as an object of its own; anything else as it is."""
    if type(value) is DictState and value._origin is not None:
        return _make(value._data.copy())
    if isinstance(value, _Draft):
        kind: Any = value.__class__
        return cast("_Shape", _shape_of(kind)).fill(kind.__new__(kind), value)
    return value


# -- paths ------------------------------------------------------------------------------------------


def split_path(path: str) -> list[str]:
    parts = path.split(".")
    if not all(parts) or any(part.startswith("__") for part in parts):
        msg = f"{path!r} is no path; expected names and indexes with dots between: 'user.tags.0'"
        raise StatePathError(msg)
    return parts


def _look(holder: Any, part: str) -> Any:
    """Return what is called ``part`` in ``holder``, or _MISSING."""
    if isinstance(holder, DictState | abc.Mapping):
        found = cast("Mapping[str, Any]", holder)
        return found.get(part, _MISSING)
    if isinstance(holder, list | tuple | deque):
        if part.startswith("-"):
            msg = f"{part!r} counts from the end; expected an index from 0 on, as in 'user.tags.0'"
            raise StatePathError(msg)
        items = cast("list[Any]", holder)
        if part.isdecimal():
            return items[int(part)] if int(part) < len(items) else _MISSING
        return getattr(items, part, _MISSING) if part in getattr(items, "_fields", ()) else _MISSING
    return _MISSING if type(holder) in _ATOMS else getattr(holder, part, _MISSING)


def _lost(path: list[str], depth: int, holder: Any, expected: str) -> StatePathError:
    where = repr(".".join(path[:depth])) if depth else "the state"
    shape, kind = _shape_of(type(holder)), type(holder).__name__
    what = "" if shape is None else f" with {_listed(shape.fields)}"
    if isinstance(holder, DictState | abc.Mapping):
        what = f" with {_listed(list(cast('Iterable[Any]', holder)))}"
    if isinstance(holder, list | tuple | deque):
        what = f" of {cast('list[Any]', holder).__len__()}"
    msg = f"{'.'.join(path)!r} leads nowhere: {where} is a {kind}{what}; {expected}"
    return StatePathError(msg)


def _listed(names: Iterable[Any]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8)) or "nothing in it"


def _replaced(holder: Any, path: list[str], depth: int, value: Any) -> Any:
    """Return a copy of ``holder`` in which ``path[depth:]`` leads to ``value``; the rest is shared."""
    kind = cast("Any", type(holder))
    part, old = path[depth], _look(holder, path[depth])
    shape = _shape_of(kind)
    has_names = kind is DictState or kind in _DICTS
    if shape is not None and shape.is_frozen:
        raise TypeError(_frozen(kind))
    if shape is not None and (shape.is_value or not depth):
        if part not in shape.fields:
            raise _lost(path, depth, holder, "expected a field that it declares")
    elif kind in _LISTS:
        if old is _MISSING:
            expected = "expected an index that it has, or append() in edit_state()"
            raise _lost(path, depth, holder, expected)
    elif not has_names:
        expected = "expected a change in `async with ctx.store.edit_state() as state:`"
        raise _lost(path, depth, holder, expected)
    if depth + 1 < len(path):
        value = _replaced({} if old is _MISSING else old, path, depth + 1, value)
    if shape is None:
        made: Any = _make(holder._data.copy()) if kind is DictState else copy.copy(holder)
        made[part if has_names else int(part)] = value
        return made
    made = shape.fill(shape.cls.__new__(shape.cls), holder)
    setattr(made, part, value)
    shape.check(made, [part])
    return made


def _frozen(kind: type) -> str:
    return (
        f"{kind.__name__} is frozen, so nothing in it can be set; expected "
        "`await ctx.store.set_state(attrs.evolve(await ctx.store.get_state(), ...))`"
    )
