"""Patches: what an edit changed in a state, as plain JSON data.

A patch is made of two states, and applied to the encoded form of the first one, which snapshots
hold. Applying it decodes nothing and runs no user code. It is a list of an operator and operands;
empty operands at the end are left out. A value here is encoded; ``{name: patch}`` is an object.

==== ======================================== ==========================================================
``=`` value                                    Any value: replaced.
``{`` {name: patch}, [name], {name: value}     Dictionary: changed, removed, then added at the end.
``d`` [[key, patch]], [key], [[key, value]]    The same with keys that are not names.
``+`` [value]                                  List: added at the end.
``[`` [[index, patch] or [index, n, [value]]]  List: item changed, or n items replaced by values.
                                               Indexes ascend, and count as before the patch.
``s`` [value], [value]                         Items of a sorted set of texts: removed, added.
``u`` [value], [value]                         Items of another set: removed, added at the end.
``v`` patch                                    The content of a tagged value changed.
``o`` {name: patch}, [name], patch             Object: changed fields, those of them that do not fit
                                               their annotations, and its other attributes.
==== ======================================== ==========================================================
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections import Counter, OrderedDict, defaultdict, deque
from itertools import compress, count, filterfalse, islice
from operator import is_, is_not
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from sluicegate._annotations import ATOMS
from sluicegate._data.builtins import TAG, check_hashes, is_text, to_str
from sluicegate._data.form import MODEL_STATE
from sluicegate._data.refusals import MAX_DEPTH, NO_STACK, MismatchError, TooDeepError, shown
from sluicegate._errors import SnapshotError
from sluicegate._state.drafts import DictState, class_fields, is_immutable_kind


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sluicegate._data.codec import Codec
    from sluicegate._data.form import Form
    from sluicegate._state.store import StateChange

    Compare: TypeAlias = Callable[..., "Patch | None"]


Patch: TypeAlias = list[Any]
_Run: TypeAlias = tuple[int, int, int, int]


#: Exact text of plain data: it tells 1, 1.0 and True apart, which ``==`` does not.
_text = msgspec.json.Encoder().encode
#: Classes of values that are equal exactly if ``==`` says so.
_SCALARS = frozenset({str, int, bool, bytes, bytearray, type(None)})
#: Those of them, and hashable, whose values are equal to none of another class, as 1 is to True and 1.0.
_DISTINCT = frozenset({str, int, bytes, type(None)})
#: How far to look for an item that moved in a list before all items are indexed.
_NEAR = 256
#: Classes of containers whose content may be changed in place.
_CHANGEABLE = frozenset(
    {list, dict, set, deque, bytearray, OrderedDict, Counter, defaultdict, DictState}
)


# -- making -----------------------------------------------------------------------------------------


def make_patch(codec: Codec, change: StateChange) -> Patch | None:
    """Return what a change has changed; None if that is nothing.

    The cost does not depend on the size of fields that the change did not touch. It grows with the
    length of a touched container, as that of its copy does, but only what differs is encoded.

    An object that is in both states is taken as unchanged if it is immutable, if a draft left it alone, or
    if :meth:`StateStore.set` went past it. A mutable one that the caller put there is written again, because
    the caller may have changed it in between.

    Args:
        codec: The codec that the state is encoded with.
        change: The old and the new state; an old state of None means that there was none.

    Raises:
        SnapshotError: A changed value cannot be kept; the message has its path: ``state.tags[3]``.
    """
    try:
        return _Comparison(codec, change.copies or {}).states(change)
    except MismatchError as fault:
        raise _told(fault, change.new) from fault.__cause__
    except RecursionError:
        raise _told(MismatchError(NO_STACK), None) from None


def _told(fault: MismatchError, state: object) -> SnapshotError:
    if type(state) is DictState:
        _as_attribute(fault, state)
    return fault.told("state")


def _as_attribute(fault: MismatchError, holder: object) -> None:
    """Write the outermost part of the path as an attribute: ``.name``, not ``['name']``."""
    if fault.way:
        part = re.sub(r"^\['([^\W\d]\w*)'\]", r".\1", fault.way[-1][0])
        fault.way[-1] = part, holder


class _Comparison:
    """One comparison of two states."""

    __slots__ = ("_codec", "_copies", "_kinds", "_origins", "_shared")

    def __init__(self, codec: Codec, copies: dict[int, Any]) -> None:
        self._codec = codec
        #: The copies in the draft, by the id of the old object.
        self._copies = copies
        #: The ids of the old objects, by that of their copies; made when it is needed.
        self._origins: dict[int, int] | None = None
        #: The ids of the mutable objects that a draft has handed out without a copy.
        self._shared = {key for key, made in copies.items() if id(made) == key}
        #: For each class: whether its objects are immutable; None if that depends on their items.
        self._kinds: dict[type, bool | None] = {}

    def states(self, change: StateChange) -> Patch | None:
        old, new = change.old, change.new
        kind = cast("Any", type(new))
        form = self._codec.form(kind)
        if type(old) is not kind or (form is None and kind is not DictState):
            return self._whole_state(new)
        shape, path = class_fields(kind), change.path or ()
        # Fields beside the path, unread fields of a draft, and those of a frozen object are as they were.
        is_copy = bool(path) or change.copies is not None
        trusted = is_copy or (shape is not None and shape.is_frozen)
        if old is new and not trusted:
            return self._whole_state(new)
        if form is not None:
            return self._object(form, old, new, 0, trusted=trusted, path=path)
        return self._dict(old._data, new._data, 0, trusted=trusted, path=path)

    def _whole_state(self, new: Any) -> Patch:
        return ["=", self._write(new.to_dict() if type(new) is DictState else new, 0)]

    def _compare(
        self,
        old: Any,
        new: Any,
        depth: int,
        *,
        trusted: bool,
        path: Sequence[str] = (),
        is_copy: bool = False,
    ) -> Patch | None:
        """Return what differs.

        Args:
            old: The old value.
            new: The new value.
            depth: How many values contain it.
            trusted: Whether it is unchanged if it is the same object.
            path: The rest of the path that was set; all else is unchanged.
            is_copy: Whether the new value is a shallow copy of the old one, made by the store.
        """
        kind = cast("Any", type(new))
        if old is new:
            known = trusted and not (self._shared and self._may_be_shared(new))
            return None if known or self._is_immutable(new) else ["=", self._write(new, depth)]
        if kind is type(old):
            if kind in _SCALARS:
                return None if old == new else ["=", self._write(new, depth)]
            trusted = is_copy or bool(path) or self._copies.get(id(old)) is new
            compare = _COMPARE.get(kind)
            if compare is not None:
                return compare(self, old, new, depth, trusted=trusted, path=path)
            form = self._codec.form(kind)
            if form is not None:
                return self._object(form, old, new, depth, trusted=trusted, path=path)
            return self._leaf(old, new, depth)
        return ["=", self._write(new, depth)]

    def _part(self, part: str, holder: Any, *values: Any, **options: Any) -> Patch | None:
        try:
            return self._compare(*values, **options)
        except MismatchError as fault:
            fault.passed(part, holder)
            raise

    def _write(self, value: Any, depth: int) -> Any:
        return self._codec.encode_part(value, depth)

    def _write_part(self, part: str, holder: Any, value: Any, depth: int) -> Any:
        try:
            return self._codec.encode_part(value, depth)
        except MismatchError as fault:
            fault.passed(part, holder)
            raise

    # -- what the same object tells

    def _is_untouched(self, old: Any, new: Any) -> bool:
        """Whether a value is an unchanged copy in the draft; faster than a comparison."""
        if self._shared or self._copies.get(id(old)) is not new:
            return False
        kind = cast("Any", type(new))
        parts: Any = (old, new)
        if kind is not list:
            form = None if kind is dict else self._codec.form(kind)
            if form is None and kind is not dict:
                return False
            names = parts if form is None else (form.read(old), form.read(new))
            if len(names[0]) != len(names[1]) or not all(map(is_, *names)):
                return False
            parts = names[0].values(), names[1].values()
        return len(parts[0]) == len(parts[1]) and (
            all(map(is_, *parts))
            or all(a is b or self._is_untouched(a, b) for a, b in zip(*parts, strict=True))
        )

    def _may_be_shared(self, value: Any) -> bool:
        """Whether an object, or a part of it if it is a tuple, was handed out without a copy."""
        return id(value) in self._shared or self._kind(type(value)) is None

    def _is_immutable(self, value: Any) -> bool:
        verdict = self._kind(cast("Any", type(value)))
        return all(map(self._is_immutable, value)) if verdict is None else verdict

    def _are_immutable(self, values: Iterable[Any], kinds: set[type]) -> bool:
        return all(map(self._kind, kinds)) or all(map(self._is_immutable, values))

    def _kind(self, kind: Any) -> bool | None:
        if kind in ATOMS:
            return True
        if kind not in self._kinds:
            self._kinds[kind] = _is_immutable_kind(kind)
        return self._kinds[kind]

    def _is_telling(self, values: Iterable[Any], *, trusted: bool) -> bool:
        """Whether all of these that are the same objects as before are unchanged."""
        if trusted and not self._shared:
            return True
        return all(self._kind(kind) for kind in set(map(type, values)))

    # -- containers

    def _list(
        self, old: Any, new: Any, depth: int, *, trusted: bool, path: Sequence[str] = ()
    ) -> Patch | None:
        if depth >= MAX_DEPTH:
            raise TooDeepError
        if path:
            place = int(path[0])
            values = old[place], new[place], depth + 1
            patch = self._part(f"[{place}]", new, *values, trusted=False, path=path[1:])
            return None if patch is None else ["[", [[place, patch]]]
        edits, kept = self._edits(old, new, depth, trusted=trusted)
        if edits and old and not kept:
            return ["=", self._write(new, depth)]
        if len(edits) == 1 and edits[0][:2] == [len(old), 0]:
            return ["+", edits[0][2]]
        return ["[", edits] if edits else None

    def _edits(
        self, old: Any, new: Any, depth: int, *, trusted: bool
    ) -> tuple[list[list[Any]], int]:
        """Return the edits that make one list of another, and how many items they keep."""
        is_telling = self._is_telling(new, trusted=trusted)
        kept, runs = self._runs(old, new, is_telling=is_telling)
        edits: list[list[Any]] = []
        for i, p, j, q in runs:
            if p - i != q - j:
                items = [self._write_part(f"[{n}]", new, new[n], depth + 1) for n in range(j, q)]
                edits.append([i, p - i, items])
                continue
            kept += q - j
            for n in _unlike(old[i:p], new[j:q]) if is_telling else range(q - j):
                values = old[i + n], new[j + n], depth + 1
                if self._is_untouched(*values[:2]):
                    continue
                patch = self._part(f"[{j + n}]", new, *values, trusted=trusted)
                if patch is not None:
                    edits.append([i + n, patch])
                    kept -= patch[0] == "="
        return edits, kept

    def _runs(self, old: Any, new: Any, *, is_telling: bool) -> tuple[int, Iterator[_Run]]:
        """Return how many items at both ends are unchanged, and the runs between them."""
        head = tail = 0
        least = min(len(old), len(new))
        if is_telling:
            head = least if all(map(is_, old, new)) else next(_unlike(old, new))
            backwards = islice(reversed(old), least - head), islice(reversed(new), least - head)
            tail = next(_unlike(*backwards), least - head)
        ends = slice(head, len(old) - tail), slice(head, len(new) - tail)
        ids = list(map(id, old[ends[0]])), list(map(id, new[ends[1]]))
        if all(ids) and self._copies:
            if self._origins is None:
                self._origins = {id(made): key for key, made in self._copies.items()}
            if not self._origins.keys().isdisjoint(ids[1]):
                ids = ids[0], [self._origins.get(key, key) for key in ids[1]]
        runs = _aligned(*ids)
        return head + tail, ((i + head, p + head, j + head, q + head) for i, p, j, q in runs)

    def _tuple(self, old: Any, new: Any, depth: int, **options: Any) -> Patch | None:
        return _in_content(self._list(list(old), list(new), depth, **options))

    def _deque(self, old: Any, new: Any, depth: int, **options: Any) -> Patch | None:
        if old.maxlen != new.maxlen:
            return ["=", self._write(new, depth)]
        patch = self._list(list(old), list(new), depth, **options)
        return None if patch is None else ["v", ["[", [[0, patch]]]]

    def _dict(
        self, old: Any, new: Any, depth: int, *, trusted: bool, path: Sequence[str] = ()
    ) -> Patch | None:
        if depth >= MAX_DEPTH:
            raise TooDeepError
        removed: list[Any] = []
        suspects: Iterable[Any]
        if path:
            suspects, added = ([path[0]], []) if path[0] in old else ([], [path[0]])
        else:
            removed, kept = _kept_keys(old, new)
            if old and not kept:
                return ["=", self._write(new, depth)]
            added = [*islice(new, kept, None)]
            is_telling = self._is_telling(new.values(), trusted=trusted)
            suspects = _suspects(old, new, kept, removed) if is_telling else islice(new, kept)
        changed: dict[Any, Patch] = {}
        options: dict[str, Any] = {"trusted": trusted and not path, "path": path[1:]}
        for key in suspects:
            values = old[key], new[key]
            if not self._is_untouched(*values):
                patch = self._part(f"[{shown(key)}]", new, *values, depth + 1, **options)
                if patch is not None:
                    changed[key] = patch
        return self._keys_patch((old, new), depth, changed, (removed, added))

    def _keys_patch(
        self,
        values: tuple[Any, Any],
        depth: int,
        changed: dict[Any, Patch],
        keys: tuple[list[Any], list[Any]],
    ) -> Patch | None:
        (old, new), (removed, added) = values, keys
        if all(map(_is_name, (*changed, *removed, *added))):
            made = [self._write_part(f"[{shown(k)}]", new, new[k], depth + 1) for k in added]
            return _trimmed("{", changed, removed, dict(zip(added, made, strict=True)))
        if all(map(_is_name, old)) or all(map(_is_name, new)):  # they are written in two ways
            return ["=", self._write(new, depth)]
        check_hashes([*new] if added else [])
        changes = [[self._write(key, depth + 1), patch] for key, patch in changed.items()]
        gone = [self._write(key, depth + 1) for key in removed]
        return _trimmed("d", changes, gone, self._pairs(new, added, depth))

    def _pairs(self, new: Any, added: list[Any], depth: int) -> list[Any]:
        made: list[Any] = []
        for place, key in enumerate(added, len(new) - len(added)):
            written = self._write_part(f".keys()[{place}]", new, key, depth + 1)
            made.append([written, self._write_part(f"[{shown(key)}]", new, new[key], depth + 1)])
        return made

    def _tagged_dict(self, old: Any, new: Any, depth: int, **options: Any) -> Patch | None:
        return _in_content(self._dict(dict(old), dict(new), depth, **options))

    def _set(self, old: Any, new: Any, depth: int, **_options: Any) -> Patch | None:
        kinds, kinds_before = set(map(type, new)), set(map(type, old))
        is_sorted = kinds <= {str}
        if is_sorted != (kinds_before <= {str}) or not self._are_immutable(new, kinds):
            return ["=", self._write(new, depth)]
        if (kinds | kinds_before) <= _DISTINCT:
            removed, added = old - new, new - old
        else:
            before, after = set(map(id, old)), set(map(id, new))
            removed = [item for item in old if id(item) not in after]
            added = [item for item in new if id(item) not in before]
        check_hashes([*new] if added and not is_sorted else [])
        if removed and len(removed) == len(old):
            return ["=", self._write(new, depth)]
        parts = self._write([*removed], depth), self._write([*added], depth)
        return _in_content(_trimmed("s" if is_sorted else "u", *parts))

    def _leaf(self, old: Any, new: Any, depth: int) -> Patch | None:
        made = self._write(new, depth)
        return None if _text(made) == _text(self._write(old, depth)) else ["=", made]

    # -- objects

    def _object(
        self,
        form: Form,
        old: Any,
        new: Any,
        depth: int,
        *,
        trusted: bool,
        path: Sequence[str] = (),
    ) -> Patch | None:
        if depth >= MAX_DEPTH:
            raise TooDeepError
        (before, rest_before), (after, rest) = form.split(old), form.split(new)
        if [*before] != [*after]:
            return ["=", self._write(new, depth)]
        is_telling = self._is_telling(after.values(), trusted=trusted)
        changed: dict[str, Patch] = {}
        odd: list[str] = []
        name = ""
        try:
            for name, item in after.items():
                is_set = bool(path) and name == path[0]
                if item is before[name] and is_telling and not is_set:
                    continue
                patch = self._compare(
                    before[name],
                    item,
                    depth + 1,
                    trusted=trusted and not is_set,
                    path=path[1:] if is_set else (),
                    is_copy=trusted and name in MODEL_STATE,
                )
                if patch is not None:
                    changed[name] = patch
                    odd += form.odd_of(name, item)
        except MismatchError as fault:
            fault.passed(f".{name}", new)
            raise
        beside: Patch | None = None
        if rest or rest_before:
            beside = self._beside(form, (rest_before, rest), new, depth, trusted=bool(path))
        if after and beside is None and all(changed.get(name, " ")[0] == "=" for name in after):
            return ["=", self._write(new, depth)]
        return _trimmed("o", changed, odd, beside)

    def _beside(
        self, form: Form, values: tuple[Any, Any], holder: Any, depth: int, *, trusted: bool
    ) -> Patch | None:
        """Compare the attributes of an object that are no fields; a draft shares them."""
        try:
            if values[1] and not form.more:
                form.refuse_name()
            return self._dict(*values, depth, trusted=trusted)
        except MismatchError as fault:
            _as_attribute(fault, holder)
            raise


# -- the classes ----------------------------------------------------------------------------------------


def _is_immutable_kind(kind: Any) -> bool | None:
    """Whether no object of a class can be changed in place; None if that depends on its items."""
    if issubclass(kind, tuple | frozenset):
        return None
    return kind not in _CHANGEABLE and is_immutable_kind(kind)


_COMPARE: dict[type, Compare] = {
    list: _Comparison._list,
    tuple: _Comparison._tuple,
    deque: _Comparison._deque,
    dict: _Comparison._dict,
    OrderedDict: _Comparison._tagged_dict,
    Counter: _Comparison._tagged_dict,
    MappingProxyType: _Comparison._tagged_dict,
    set: _Comparison._set,
    frozenset: _Comparison._set,
}


# -- comparing lists and keys ---------------------------------------------------------------------------


def _unlike(old: Iterable[Any], new: Iterable[Any]) -> Iterator[int]:
    """Return the places at which two sequences have different objects."""
    return compress(count(), map(is_not, old, new))


def _aligned(old: list[int], new: list[int]) -> Iterator[_Run]:
    """Yield how one list of numbers became another, in runs.

    A run ``(i, p, j, q)`` is ``old[i:p]`` and ``new[j:q]``: the items belong together in pairs, or one of
    the two is empty.
    """
    i = j = 0
    in_old: dict[int, int] = {}
    in_new: dict[int, int] = {}
    while i < len(old) and j < len(new):
        same = _same_from(old, i, new, j)
        if same:
            yield i, i + same, j, j + same
            i, j = i + same, j + same
            continue
        p, q = _near(old, new[j], i), _near(new, old[i], j)
        if p < 0 and q < 0:
            if not in_old:
                in_old, in_new = _first_places(old), _first_places(new)
            p, q = in_old.get(new[j], -1), in_new.get(old[i], -1)
        if p < i and q < j:  # one replaced the other
            yield i, i + 1, j, j + 1
            i, j = i + 1, j + 1
        elif q < j or (p >= i and p - i <= q - j):
            yield i, p, j, j
            i = p
        else:
            yield i, i, j, q
            j = q
    if i < len(old):
        yield i, len(old), j, j
    if j < len(new):
        yield len(old), len(old), j, len(new)


def _same_from(old: list[int], i: int, new: list[int], j: int) -> int:
    """Return the length of an equal run, or a shorter one; slices compare faster than items."""
    same, step = 0, 1
    while (part := old[i + same : i + same + step]) and part == new[j + same : j + same + step]:
        same += len(part)
        step *= 2
    return same


def _near(numbers: list[int], number: int, start: int) -> int:
    """Return the next place of a number if it is near, otherwise -1."""
    try:
        return numbers.index(number, start, start + _NEAR)
    except ValueError:
        return -1


def _first_places(numbers: list[int]) -> dict[int, int]:
    return dict(zip(reversed(numbers), range(len(numbers) - 1, -1, -1), strict=True))


def _kept_keys(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> tuple[list[Any], int]:
    """Return the keys to remove, and how many others there are: those, in order, ``new`` begins with.

    A key that moved to the end is removed, and added again.
    """
    if len(old) <= len(new) and all(map(is_, old, new)):
        return [], len(old)
    removed = [*filterfalse(new.__contains__, old)]
    kept = len(old) - len(removed)
    if kept <= len(new) and all(map(is_, filterfalse(set(removed).__contains__, old), new)):
        return removed, kept
    gone: list[Any] = []
    keys = iter(new)
    expected, kept = next(keys, None), 0
    for key in old:
        if kept < len(new) and _is_same_key(key, expected):
            kept += 1
            expected = next(keys, None)
        else:
            gone.append(key)
    return gone, kept


def _suspects(old: Any, new: Any, kept: int, removed: list[Any]) -> Iterable[Any]:
    """Return those of the kept keys that have another object as their value."""
    before = map(old.__getitem__, islice(new, kept)) if removed else old.values()
    return compress(new, map(is_not, before, new.values()))


def _is_same_key(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and type(old) in _SCALARS and old == new)


def _is_name(key: Any) -> bool:
    """Whether a key is written as it is; a dictionary with another one is written as pairs."""
    return type(key) is str and key != TAG and is_text(key)


def _in_content(patch: Patch | None) -> Patch | None:
    return None if patch is None else ["v", patch]


def _trimmed(operator: str, *operands: Any) -> Patch | None:
    """Return a patch without the empty operands at its end; None if all are empty."""
    made = [operator, *operands]
    while not made[-1]:
        made.pop()
    return made if len(made) > 1 else None


# -- applying -----------------------------------------------------------------------------------------


def apply_patch(state: Any, patch: Patch) -> Any:
    """Return an encoded state with a patch applied to it.

    The state is changed in place as far as possible, and takes parts of the patch; use neither of them
    afterwards. Nothing is decoded, and no user code runs.

    Args:
        state: The encoded form of the old state that the patch was made of, patched since or not; None if
            there was none.
        patch: The patch.

    Raises:
        SnapshotError: The patch was not made for this state. The state may have been changed in part.
    """
    try:
        return _apply(state, patch)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        msg = (
            f"a patch does not fit the state ({type(error).__name__}: {error}); expected the patches "
            "of one run, each once and in their order, from the state that it began with"
        )
        raise SnapshotError(msg) from error


def _apply(data: Any, patch: Patch) -> Any:
    return _OPERATORS[patch[0]](data, *patch[1:])


def _replace(_data: Any, value: Any) -> Any:
    return value


def _change_names(
    data: dict[str, Any],
    changed: dict[str, Patch],
    removed: Sequence[str] = (),
    added: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    if TAG in data:
        return _change_keys(data, [*changed.items()], removed, [*map(list, added.items())])
    for name, patch in changed.items():
        data[name] = _apply(data[name], patch)
    for name in removed:
        del data[name]
    data.update(added)
    return data


def _change_keys(
    data: dict[str, Any],
    changed: Sequence[Any],
    removed: Sequence[Any] = (),
    added: Sequence[Any] = (),
) -> Any:
    pairs = data["v"]
    places = {_text(key): place for place, (key, _) in enumerate(pairs)}
    for key, patch in changed:
        pair = pairs[places[_text(key)]]
        pair[1] = _apply(pair[1], patch)
    gone = {places[_text(key)] for key in removed}
    if gone:
        pairs[:] = [pair for place, pair in enumerate(pairs) if place not in gone]
    pairs.extend(added)
    return data


def _append(data: list[Any], values: list[Any]) -> Any:
    data.extend(values)
    return data


def _edit(data: list[Any], edits: list[Any]) -> Any:
    for place, *edit in reversed(edits):  # from the end, so that places stay right
        if len(edit) == 1:
            data[place] = _apply(data[place], edit[0])
            continue
        end = place + edit[0]
        if end > len(data):
            raise IndexError(end)
        data[place:end] = edit[1]
    return data


def _change_sorted(data: list[Any], removed: list[Any], added: Sequence[Any] = ()) -> Any:
    for item in removed:
        place = bisect_left(data, _sort_key(item), key=_sort_key)
        if data[place] != item:
            raise KeyError(item)
        del data[place]
    for item in added:
        insort(data, item, key=_sort_key)
    return data


def _sort_key(item: Any) -> str:
    """Return the text of an encoded text, which is tagged if it has lone surrogates."""
    return item if type(item) is str else to_str(item["v"])


def _change_unsorted(data: list[Any], removed: list[Any], added: Sequence[Any] = ()) -> Any:
    for item in removed:
        text = _text(item)
        places = (n for n, other in enumerate(data) if other == item and _text(other) == text)
        place = next(places, None)
        if place is None:
            raise KeyError(item)
        del data[place]
    data.extend(added)
    return data


def _change_content(data: dict[str, Any], patch: Patch) -> Any:
    data["v"] = _apply(data["v"], patch)
    return data


def _change_fields(
    data: dict[str, Any],
    changed: dict[str, Patch],
    odd: Sequence[str] = (),
    beside: Patch | None = None,
) -> Any:
    fields = data["v"]
    for name, patch in changed.items():
        fields[name] = _apply(fields[name], patch)
    rest = data.get("x", {})
    if beside:
        rest = _apply(rest, beside)
    left = [name for name in data.get("odd", ()) if name not in changed]
    names = [name for name in fields if name in odd or name in left]
    names += [name for name in left if name not in fields]
    made = {TAG: data[TAG], "v": fields}
    if rest:
        made["x"] = rest
    if names:
        made["odd"] = names
    return made


_OPERATORS: dict[str, Callable[..., Any]] = {
    "=": _replace,
    "{": _change_names,
    "d": _change_keys,
    "+": _append,
    "[": _edit,
    "s": _change_sorted,
    "u": _change_unsorted,
    "v": _change_content,
    "o": _change_fields,
}
