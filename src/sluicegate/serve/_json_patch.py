"""Differences of two JSON values, as a JSON Patch (RFC 6902)."""

from __future__ import annotations

from typing import Any


#: A patch of more operations is worth less than the value itself.
_MOST = 1_000
#: Below this depth, values are replaced as a whole.
_DEEPEST = 50
_CONTAINERS: tuple[object, ...] = (dict, list)


def json_patch(old: Any, new: Any) -> list[dict[str, Any]] | None:
    """Return the operations that make ``new`` of ``old``; None if the value itself says it better.

    Args:
        old: A value, as :func:`json.loads` returns it; it is not changed.
        new: Another one. Parts of it become parts of the patch.
    """
    operations: list[dict[str, Any]] = []
    try:
        if _kind(old) is not _kind(new) or _kind(old) not in _CONTAINERS:
            return operations if _is_same(old, new) else None
        _compare(old, new, "", operations, 0)
    except RecursionError:
        return None
    return None if len(operations) > _MOST else operations


def _compare(old: Any, new: Any, path: str, into: list[dict[str, Any]], depth: int) -> None:
    if len(into) > _MOST:
        return
    kind = _kind(old) if depth < _DEEPEST and _kind(old) is _kind(new) else None
    if kind is dict:
        _compare_objects(old, new, path, into, depth)
    elif kind is list:
        _compare_arrays(old, new, path, into, depth)
    elif not _is_same(old, new):
        into.append({"op": "replace", "path": path, "value": new})


def _compare_objects(
    old: dict[str, Any], new: dict[str, Any], path: str, into: list[dict[str, Any]], depth: int
) -> None:
    into.extend({"op": "remove", "path": _at(path, name)} for name in old if name not in new)
    for name, value in new.items():
        if name in old:
            _compare(old[name], value, _at(path, name), into, depth + 1)
        else:
            into.append({"op": "add", "path": _at(path, name), "value": value})


def _compare_arrays(
    old: list[Any], new: list[Any], path: str, into: list[dict[str, Any]], depth: int
) -> None:
    """Compare what lies between the equal beginnings and the equal ends."""
    least = min(len(old), len(new))
    first = 0
    while first < least and _is_same(old[first], new[first]):
        first += 1
    last = 0
    while last < least - first and _is_same(old[-1 - last], new[-1 - last]):
        last += 1
    both = least - first - last
    for place in range(first, first + both):
        _compare(old[place], new[place], f"{path}/{place}", into, depth + 1)
    at = first + both
    removed, added = old[at : len(old) - last], new[at : len(new) - last]
    into.extend({"op": "remove", "path": f"{path}/{at}"} for _ in removed)
    for number, value in enumerate(added, at):
        into.append({"op": "add", "path": f"{path}/{number}", "value": value})


def _at(path: str, name: str) -> str:
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"


def _is_same(old: Any, new: Any) -> bool:
    """Whether two values are the same in JSON, which tells 1 from true, but not from 1.0."""
    kind = _kind(old)
    if kind is bool or _kind(new) is bool:
        return old is new
    if kind is not _kind(new) or kind not in _CONTAINERS:
        return bool(old == new)
    if kind is list:
        return len(old) == len(new) and all(map(_is_same, old, new))
    return old.keys() == new.keys() and all(_is_same(item, new[name]) for name, item in old.items())


def _kind(value: object) -> object:
    return type(value)
