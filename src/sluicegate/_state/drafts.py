"""Drafts of a run's state: copying, sharing, paths, and the check of changed fields.

A committed state never changes. A write builds the next state, which shares all unchanged values.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import Counter, OrderedDict, abc, defaultdict, deque
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import attrs

from sluicegate._annotations import ATOMS as _ATOMS
from sluicegate._annotations import fits, plain_form, text_of
from sluicegate._data.fields import Traits, traits_of
from sluicegate._data.pydantic import convert
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import Event


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


_DICTS = frozenset({dict, defaultdict, OrderedDict, Counter})
_LISTS = frozenset({list, deque})
MISSING: Any = object()
#: The attributes of a pydantic model that are not fields.
_MODEL_PARTS = ("__pydantic_extra__", "__pydantic_private__")
_RESERVED = frozenset({"get", "to_dict", "_data", "_origin", "_memo"})


class StatePathError(WorkflowRuntimeError, LookupError, ValueError):
    """Raised if a path does not exist in the state, or is not a valid path."""


@final
class DictState:  # noqa: PLW1641 - it changes, so it has no hash
    """An undeclared state: ``state.count`` and ``state["count"]`` are the same.

    ``in``, ``len()``, iteration over the names and ``==`` work as with a dictionary. The name of a
    method (``get``, ``to_dict``) can be the name of an item, but not of an attribute.

    Args:
        values: Names with their values; the mapping is copied, the values are not.
        more: More names with their values, as keywords.
    """

    __slots__ = ("_data", "_memo", "_origin")
    _data: dict[str, Any]
    #: In a draft: the committed names and values, and the copies of them made so far.
    _origin: dict[str, Any] | None
    _memo: dict[int, Any]

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        _put_data(self, {**(values or {}), **more})
        _put_origin(self, None)

    def __getitem__(self, name: str) -> Any:
        value = self._data[name]
        origin = self._origin
        if origin is not None and type(value) not in _ATOMS and origin.get(name, MISSING) is value:
            self._data[name] = value = _copy(value, self._memo)
        return value

    def __getattr__(self, name: str) -> Any:
        if name[:2] != "__":
            value = self._data.get(name, MISSING)
            if type(value) in _ATOMS:
                return value
            if value is not MISSING:
                return self[name]
        msg = (
            f"the state has no {name!r}, it has {listed(self._data)}; expected state.get({name!r})"
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
        """Return the value of ``name``, or ``default`` if there is none."""
        return self[name] if name in self._data else default

    def to_dict(self) -> dict[str, Any]:
        """Return the names and values as a new dict; the values are not copied."""
        return {name: self[name] for name in self._data}

    def __reduce__(self) -> tuple[Any, ...]:
        return DictState, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"DictState({self._data!r})"


def make_dict_state(data: dict[str, Any], origin: dict[str, Any] | None = None) -> DictState:
    made = DictState.__new__(DictState)
    _put_data(made, data)
    _put_origin(made, origin)
    return made


_get: Any = object.__getattribute__
_slots = cast("dict[str, Any]", vars(DictState))
_put_data, _put_origin, put_memo = (_slots[n].__set__ for n in ("_data", "_origin", "_memo"))


def _copy(value: Any, memo: dict[int, Any]) -> Any:  # noqa: C901, PLR0912 - one for each form
    """Copy a value with the containers and the objects with fields in it; share all else."""
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
        made = memo[id(value)] = make_dict_state(_copy(value._data, memo))
    elif (shape := class_fields(kind)) is not None and shape.is_value:
        made = memo[id(value)] = shape.fill(kind.__new__(kind), value)
        for name in shape.parts():
            part = shape.load(value, name)  # of the old object: `memo` must not outlive an id
            if type(part) not in _ATOMS and part is not MISSING:
                shape.store(made, name, _copy(part, memo))
    elif (config := getattr(kind, "__struct_config__", None)) is not None:
        if not config.frozen:
            made = memo[id(value)] = _copy_struct(value, memo) if config.eq else value
    elif issubclass(kind, BaseException) or (shape is not None and not shape.is_frozen):
        memo[id(value)] = value  # not copied, so the block may change the committed object
    return made


def _copy_struct(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a msgspec.Struct as an object with fields."""
    made = memo[id(value)] = copy.copy(value)
    for name in value.__struct_fields__:
        part = getattr(value, name)
        if type(part) not in _ATOMS:
            setattr(made, name, _copy(part, memo))
    return made


def is_immutable_kind(kind: Any) -> bool:
    """Whether the objects of a class that is no container cannot change; frozen ones count as such."""
    struct = getattr(kind, "__struct_config__", None)
    if struct is not None:
        return bool(struct.frozen)
    shape = class_fields(kind)
    return not issubclass(kind, BaseException) and (shape is None or shape.is_frozen)


def _tuple_like(old: Any, parts: list[Any]) -> Any:
    if all(a is b for a, b in zip(old, parts, strict=True)):
        return old
    return getattr(old, "_make", cast("Any", type(old)))(parts)


class _Draft:
    """The base of the drafts of typed states: one subclass for each class of states.

    A field is copied on its first read. All other attributes, even ``__class__``, are those of the
    class.
    """

    __slots__ = ()
    _sluicegate_fields: ClassVar[frozenset[str]]

    def __init_subclass__(cls) -> None:
        """Do not run the hooks of the drafted class."""

    def __copy__(self) -> Any:
        for name in type(self)._sluicegate_fields:
            getattr(self, name, None)
        return detached(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(detached(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return detached(self).__reduce_ex__(protocol)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if type(value) in _ATOMS or name not in type(self)._sluicegate_fields:
            return value
        old, memo = _get(self, "_sluicegate_draft")
        if value is getattr(old, name, MISSING):
            value = _copy(value, memo)
            cast("_ClassFields", class_fields(type(old))).store(self, name, value)
        return value


def _get_extra(draft: Any, name: str) -> Any:
    """Return an extra or private value of a draft of a model, whose own ``__getattr__`` copies no extra."""
    if name in (_get(draft, "__pydantic_extra__") or ()):
        return draft.__pydantic_extra__[name]
    return draft.__class__.__getattr__(draft, name)


class _ClassFields:
    """The fields of a declared class and how to read and write them; stored on the class."""

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
        #: An object that compares by identity is a live object, such as a Trio lock: not copied.
        self.is_value: bool = not is_frozen and (
            cls.__eq__ is not object.__eq__ and cls.__new__ is object.__new__
        )
        self._slots = {
            name: slot
            for base in reversed(cls.__mro__)
            for name, slot in vars(base).items()
            if isinstance(slot, types.MemberDescriptorType)
        }
        self._known: Traits | None = None
        self._kind = cast("Any", None)

    def load(self, holder: Any, name: str) -> Any:
        if holder is None:
            return MISSING
        slot = self._slots.get(name)
        if slot is None:
            return holder.__dict__.get(name, MISSING)
        try:
            return slot.__get__(holder)
        except AttributeError:
            return MISSING

    def store(self, holder: Any, name: str, value: object) -> None:
        slot = self._slots.get(name)
        if slot is None:
            holder.__dict__[name] = value
        else:
            slot.__set__(holder, value)

    def fill(self, made: Any, source: Any) -> Any:
        """Set the attributes of ``source`` on ``made``; the containers are shared."""
        if hasattr(source, "__dict__"):
            made.__dict__.update(source.__dict__)
        for name, slot in self._slots.items():
            value = self.load(source, name)
            if value is not MISSING:
                # Every assignment changes these attributes of a pydantic model, so copy them.
                slot.__set__(made, copy.copy(value) if self.is_pydantic else value)
        return made

    def parts(self) -> tuple[str, ...]:
        """Return the names of the attributes that hold the values of an object."""
        return (*self.fields, *_MODEL_PARTS) if self.is_pydantic else self.fields

    def draft(self, old: Any) -> Any:
        """Return the draft of ``old`` for an edit block."""
        if self._kind is None:
            space = {n: getattr(self.cls, n) for n in ("__module__", "__qualname__", "__doc__")}
            space |= {
                "__slots__": ("_sluicegate_draft",),
                "__class__": property(lambda _: self.cls),
            }
            space["_sluicegate_fields"] = frozenset(self.parts())
            if self.is_pydantic:
                space["__getattr__"] = _get_extra
            bases = (_Draft, self.cls)
            meta: Any = type
            self._kind = meta.__new__(type(self.cls), self.cls.__name__, bases, space)
        made: Any = self._kind.__new__(self._kind)
        object.__setattr__(made, "_sluicegate_draft", (old, {}))
        self.fill(made, old)
        if self.is_pydantic:  # shared with the old object until it is first read
            for name in _MODEL_PARTS:
                if self.load(old, name) is not MISSING:
                    self.store(made, name, self.load(old, name))
        return made

    def check(self, made: Any, names: Iterable[str], old: Any, *, is_whole: bool) -> None:
        """Check the changed fields of a new object against their annotations.

        It checks only the classes of values. It does not run validators, converters or constraints:
        the user's class has run them when it made the value.

        Args:
            made: The new object. It gets the values that pydantic's core types convert (text to a
                number).
            names: The fields that may have been written.
            old: The object that it replaces; None for the first, or for one of another class.
            is_whole: Whether the class itself has made the object.

        Raises:
            TypeError: A value does not fit; the message names class, field and value.
        """
        for name in names:
            value = self.load(made, name)
            before = MISSING if old is None else self.load(old, name)
            if value is before or value is MISSING:
                continue
            hint = self.hints.get(name, Any)
            if type(value) is hint or fits(hint, value):
                continue
            if self._was_made_so(name, value, before, is_whole=is_whole):
                continue
            cause: Exception | None = None
            if self.is_pydantic and name not in self._traits.strict:
                value, cause = convert(hint, value)
                if cause is None:
                    self.store(made, name, value)
                    continue
            plain = plain_form(value)
            msg = (
                f"{self.cls.__name__}.{name} would be {brief(value)}, which is not {text_of(hint)}"
                f"{f'; expected a plain value: {plain}' if plain else ''}"
            )
            raise TypeError(msg) from (None if isinstance(cause, LookupError) else cause)

    def _was_made_so(self, name: str, value: Any, before: Any, *, is_whole: bool) -> bool:
        """Whether the class itself makes such values, even if they contradict its annotation."""
        for example in (before, self._traits.defaults.get(name, MISSING)):
            if type(value) is type(example) and not fits(self.hints.get(name, Any), example):
                return True
        return name in self._traits.converted and (is_whole or self._traits.converts_on_set)

    @property
    def hints(self) -> dict[str, Any]:
        """The resolved annotations of the fields.

        Raises:
            TypeError: An annotation cannot be resolved.
        """
        return self._traits.hints

    @property
    def _traits(self) -> Traits:
        if self._known is None:
            self._known = traits_of(self.cls)
        return self._known


def class_fields(cls: Any) -> _ClassFields | None:
    shape: _ClassFields | None = cls.__dict__.get("_sluicegate_shape")
    marks = ("__attrs_attrs__", "__dataclass_fields__", "__pydantic_validator__")
    if shape is None and any(hasattr(cls, mark) for mark in marks) and not issubclass(cls, _Draft):
        shape = _ClassFields(cls)
        type.__setattr__(cls, "_sluicegate_shape", shape)
    return shape


def copies_of(value: Any) -> dict[int, Any] | None:
    """Return the copies that a draft has made, by the id of the old object; None if it is no draft.

    An object that was handed out without a copy, but may have changed, is there as its own copy.
    """
    if type(value) is DictState:
        return None if value._origin is None else value._memo
    copies: dict[int, Any] | None = None
    if isinstance(value, _Draft):
        _, copies = _get(value, "_sluicegate_draft")
    return copies


def detached(value: Any) -> Any:
    """Return a draft as a separate object; any other value unchanged."""
    if type(value) is DictState and value._origin is not None:
        return make_dict_state(value._data.copy())
    if isinstance(value, _Draft):
        kind: Any = value.__class__
        return cast("_ClassFields", class_fields(kind)).fill(kind.__new__(kind), value)
    return value


# -- paths ------------------------------------------------------------------------------------------


def split_path(path: str) -> list[str]:
    parts = path.split(".")
    if not all(parts) or any(part.startswith("__") for part in parts):
        msg = (
            f"{brief(path)} is not a path; expected names and indexes separated by dots: "
            "'user.tags.0'"
        )
        raise StatePathError(msg)
    return parts


def look(holder: Any, part: str) -> Any:
    """Return the item or attribute ``part`` of ``holder``, or MISSING."""
    if isinstance(holder, DictState | abc.Mapping):
        found = cast("Mapping[str, Any]", holder)
        return found.get(part, MISSING)
    if isinstance(holder, list | tuple | deque):
        if part.startswith("-"):
            msg = f"{part!r} counts from the end; expected an index from 0 on, as in 'user.tags.0'"
            raise StatePathError(msg)
        items = cast("list[Any]", holder)
        if part.isdecimal():
            return items[int(part)] if int(part) < len(items) else MISSING
        return getattr(items, part, MISSING) if part in getattr(items, "_fields", ()) else MISSING
    return MISSING if type(holder) in _ATOMS else getattr(holder, part, MISSING)


def path_error(path: list[str], depth: int, holder: Any, expected: str) -> StatePathError:
    where = brief(".".join(path[:depth])) if depth else "the state"
    shape, kind = class_fields(type(holder)), type(holder).__name__
    what = "" if shape is None else f" with {listed(shape.fields)}"
    if isinstance(holder, DictState | abc.Mapping):
        what = f" with {listed(list(cast('Iterable[Any]', holder)))}"
    if isinstance(holder, list | tuple | deque):
        what = f" of {cast('list[Any]', holder).__len__()}"
    msg = f"{brief('.'.join(path))} leads nowhere: {where} is a {kind}{what}; {expected}"
    return StatePathError(msg)


def listed(names: Iterable[Any]) -> str:
    shown = [brief(name, 60) for name in names]
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8)) or "nothing in it"


def replaced(holder: Any, path: list[str], depth: int, value: Any) -> Any:
    """Return a copy of ``holder`` with ``value`` at ``path[depth:]``; all else is shared."""
    kind = cast("Any", type(holder))
    part, old = path[depth], look(holder, path[depth])
    shape = class_fields(kind)
    has_names = kind is DictState or kind in _DICTS
    if shape is not None and shape.is_frozen:
        raise TypeError(frozen_error(kind))
    if shape is not None and (shape.is_value or not depth):
        if part not in shape.fields:
            raise path_error(path, depth, holder, "expected a field that it declares")
    elif kind in _LISTS:
        if old is MISSING:
            expected = "expected an index that it has, or append() in edit_state()"
            raise path_error(path, depth, holder, expected)
    elif not has_names:
        expected = "expected a change in `async with ctx.store.edit_state() as state:`"
        raise path_error(path, depth, holder, expected)
    if depth + 1 < len(path):
        value = replaced({} if old is MISSING else old, path, depth + 1, value)
    if shape is None:
        made: Any = make_dict_state(holder._data.copy()) if kind is DictState else copy.copy(holder)
        made[part if has_names else int(part)] = value
        return made
    made = shape.fill(shape.cls.__new__(shape.cls), holder)
    setattr(made, part, value)
    shape.check(made, [part], holder, is_whole=False)
    return made


def frozen_error(kind: type) -> str:
    before = "await ctx.store.get_state()"
    call = f"dataclasses.replace({before}, ...)"
    if hasattr(kind, "model_fields"):
        call = f"({before}).model_copy(update={{...}})"
    elif attrs.has(kind):
        call = f"attrs.evolve({before}, ...)"
    return (
        f"{kind.__name__} is frozen, so nothing in it can be set; expected "
        f"`await ctx.store.set_state({call})`"
    )
