"""Patches of the state: each edit as what it changed, applied to the encoded state without its classes."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from collections import Counter, OrderedDict, deque
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluicegate import Event, SnapshotError
from sluicegate._data.codec import TAG, Codec
from sluicegate._state.drafts import DictState
from sluicegate._state.patches import apply_patch, make_patch
from sluicegate._state.store import StateChange, StateStore
from tests.test_codec import HASHABLE, KNOWN, TEXT, VALUES, Model, Slotted


@attrs.define
class Typed:
    n: int = 0
    items: list[Any] = attrs.Factory(list)
    table: dict[Any, Any] = attrs.Factory(dict)
    words: set[Any] = attrs.Factory(set)
    inner: Any = None
    #: The class makes another value than the annotation says, so that the data names the field.
    code: list[int] = attrs.field(default=(), converter=lambda parts: [str(part) for part in parts])


@dataclasses.dataclass
class Data:
    n: int = 0
    items: list[Any] = dataclasses.field(default_factory=list)
    table: dict[Any, Any] = dataclasses.field(default_factory=dict)
    words: set[Any] = dataclasses.field(default_factory=set)
    inner: Any = None


class Checked(pydantic.BaseModel, extra="allow"):
    n: int = 0
    items: list[Any] = []
    table: dict[Any, Any] = {}
    words: set[Any] = set()
    inner: Any = None
    _private: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)


@attrs.frozen
class Fixed:
    n: int = 0
    items: list[Any] = attrs.Factory(list)
    inner: Any = None


@attrs.define(eq=False)
class Live:
    """An object that compares by identity, which a draft does not copy."""

    n: int = 0


class Record(msgspec.Struct):
    n: int
    items: list[Any] = []


class Said(Event):
    text: str
    parts: tuple[Any, ...] = ()


class Point(NamedTuple):
    x: Any
    y: Any


CODEC = Codec([*KNOWN, Typed, Data, Checked, Fixed, Live, Record, Said, Point])
STATES = [None, Typed, Data, Checked]
everywhere = pytest.mark.parametrize("kind", STATES, ids=["dict", "attrs", "dataclass", "pydantic"])
NAMES = {"n": 0, "items": [], "table": {}, "words": set(), "inner": None}


def encoded(state):
    """Return a state as snapshots hold it."""
    return CODEC.encode(state.to_dict() if type(state) is DictState else state, "state")


def fresh(value):
    """Return a deep copy; some of the classes do not take ``copy.deepcopy``."""
    return CODEC.decode(CODEC.encode(value, "value"), "value")


def text_of(data):
    """Return plain data as text, in which only sets without an order of their own are sorted."""
    return json.dumps(_canonical(data))


def _canonical(data):
    if isinstance(data, list):
        return [*map(_canonical, data)]
    if not isinstance(data, dict):
        return data
    made = {key: _canonical(part) for key, part in data.items()}
    if made.get(TAG) in ("set", "frozenset") and not all(type(i) is str for i in made["v"]):
        made["v"] = sorted(made["v"], key=json.dumps)
    return made


class Journal:
    """Keeps the patches of a store, as text, and the encoded state at their beginning."""

    def __init__(self, store):
        self.base = json.dumps(encoded(store.snapshot_state()))
        self.store = store
        self.lines = []
        store.journal = self

    def __call__(self, change):
        assert self.store.snapshot_state() is change.old
        patch = make_patch(CODEC, change)
        if patch is not None:
            self.lines.append(json.dumps(patch))

    @property
    def last(self):
        """The last patch."""
        return json.loads(self.lines[-1])

    def check(self):
        """Compare the state that the patches make with the one in the store."""
        state = json.loads(self.base)
        for line in self.lines:
            state = apply_patch(state, json.loads(line))
        assert text_of(encoded(self.store.snapshot_state())) == text_of(state)


def journalled(kind=None, **values):
    """Return a store that writes down its changes, and its journal."""
    state = DictState({**NAMES, **fresh(values)}) if kind is None else kind(**values)
    store = StateStore(kind, state)
    return store, Journal(store)


# -- every value ------------------------------------------------------------------------------------


def changed(draw, value):
    """Return a value to put in place of another: that object, changed, or a new one."""
    if draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    if isinstance(value, (list, deque)):
        return change_list(draw, value)
    if isinstance(value, dict):
        return change_dict(draw, value)
    if isinstance(value, set):
        (value.add if draw(st.booleans()) or not value else value.discard)(
            draw(HASHABLE if not value else HASHABLE | st.sampled_from(sorted(value, key=repr)))
        )
        return value
    if type(value) is tuple:
        return tuple(change_list(draw, [*value]))
    if isinstance(value, (Model, Checked)):
        value.more = draw(VALUES)
        return value
    if isinstance(value, (Slotted, Typed, Data)):
        value.inner = changed(draw, value.inner)
        return value
    if isinstance(value, Event):
        return attrs.evolve(value)
    return fresh(value)


def change_list(draw, value):
    """Change a list or a deque in one of the ways that lists change."""
    way = draw(
        st.sampled_from(["append", "item", "insert", "pop", "shift", "reverse", "clear", "twice"])
    )
    place = draw(st.integers(0, max(len(value) - 1, 0)))
    is_full = getattr(value, "maxlen", None) is not None and len(value) == value.maxlen
    if way == "append" or not value:
        value.append(draw(VALUES))
    elif way == "insert" and not is_full:
        value.insert(place, draw(VALUES))
    elif way == "pop":
        del value[place]
    elif way == "shift":
        del value[0]
        value.append(draw(VALUES))
    elif way == "reverse":
        value.reverse()
    elif way == "clear":
        value.clear()
    elif way == "twice":
        value.append(value[place])
    else:
        value[place] = changed(draw, value[place])
    return value


def change_dict(draw, value):
    """Change a dictionary in one of the ways that dictionaries change."""
    way = draw(st.sampled_from(["add", "item", "item", "delete", "move", "clear"]))
    key = draw(st.sampled_from([*value])) if value else None
    if way == "add" or not value:
        value[draw(HASHABLE | TEXT)] = draw(VALUES)
    elif way == "delete":
        del value[key]
    elif way == "move":
        value[key] = value.pop(key)
    elif way == "clear":
        value.clear()
    else:
        value[key] = changed(draw, value[key])
    return value


async def change_state(draw, store):
    """Change the state of a store once, in one of the ways of its API."""
    way = draw(st.sampled_from(["edit", "edit", "edit", "set", "mutate", "state", "clear"]))
    name = draw(st.sampled_from([*NAMES][1:]))
    if way == "edit":
        async with store.edit_state() as state:
            for _ in range(draw(st.integers(1, 3))):
                setattr(state, name, changed_field(draw, name, getattr(state, name)))
                name = draw(st.sampled_from([*NAMES][1:]))
    elif way == "set":
        value = fresh(await store.get(name))
        await store.set(name, changed_field(draw, name, value))
    elif way == "mutate":  # not allowed, but common in programs for LlamaIndex
        await store.set(name, changed_field(draw, name, await store.get(name)))
    elif way == "state":
        state = await store.get_state()
        setattr(state, name, changed_field(draw, name, getattr(state, name)))
        await store.set_state(state)
    else:
        await store.clear()
        if store.snapshot_state() == DictState():
            await store.set_state(DictState(fresh(NAMES)))


def changed_field(draw, name, value):
    """Return a value for a field, of the class that its annotation says."""
    if name == "inner":
        return changed(draw, value)
    change = {list: change_list, dict: change_dict}.get(type(value))
    if change is not None:
        return change(draw, value)
    return {*value, draw(HASHABLE | TEXT)} if draw(st.booleans()) else {*[*value][1:]}


def check_changes(data, kind):
    """Change a state some times, and compare after each change."""

    async def main():
        items = data.draw(st.lists(VALUES, max_size=4))
        table = data.draw(st.dictionaries(HASHABLE | TEXT, VALUES, max_size=4))
        words = data.draw(st.sets(TEXT, max_size=4) | st.sets(HASHABLE, max_size=4))
        inner = data.draw(VALUES)
        store, journal = journalled(kind, items=items, table=table, words=words, inner=inner)
        for _ in range(data.draw(st.integers(1, 4))):
            await change_state(data.draw, store)
            journal.check()

    trio.run(main)


some = settings(deadline=None, suppress_health_check=[*HealthCheck])


@everywhere
@settings(some, max_examples=15)
@given(st.data())
def test_patches_rebuild_the_state(kind, data):
    """After each change of a state, its patches make the same encoded state of the first one."""
    check_changes(data, kind)


@pytest.mark.slow
@everywhere
@settings(some, max_examples=150)
@given(st.data())
def test_patches_rebuild_the_state_in_many_cases(kind, data):
    """The same, in many more cases."""
    check_changes(data, kind)


# -- what a patch is --------------------------------------------------------------------------------


def edited(old, change):
    """Return the patch of one edit of a value in the state, after a check that it rebuilds the state."""
    store, journal = journalled(inner=old)

    async def main():
        async with store.edit_state() as state:
            found = change(state.inner)
            if type(found) is Put:
                state.inner = found.value

    trio.run(main)
    journal.check()
    if not journal.lines:
        return None
    assert [*journal.last[1]] == ["inner"]
    return journal.last[1]["inner"]


@dataclasses.dataclass
class Put:
    """A new value, of a change that does not change the old one."""

    value: Any


LETTERS = ["a", "b", "c", "d", "e"]
ROWS = [{"at": n, "tags": []} for n in range(4)]


@pytest.mark.parametrize(
    ("old", "change", "expected"),
    [
        # lists
        (LETTERS, lambda v: v.append("f"), ["+", ["f"]]),
        (LETTERS, lambda v: v.extend("fg"), ["+", ["f", "g"]]),
        (LETTERS, lambda v: Put([*v, "f"]), ["+", ["f"]]),
        (LETTERS, lambda v: v.pop(), ["[", [[4, 1, []]]]),
        (LETTERS, lambda v: v.pop(0), ["[", [[0, 1, []]]]),
        (LETTERS, lambda v: v.insert(2, "x"), ["[", [[2, 0, ["x"]]]]),
        (LETTERS, lambda v: v.__setitem__(2, "x"), ["[", [[2, ["=", "x"]]]]),
        (LETTERS, lambda v: Put([*v[1:], "f"]), ["[", [[0, 1, []], [5, 0, ["f"]]]]),
        (LETTERS, lambda v: v.insert(0, v.pop()), ["[", [[0, 0, ["e"]], [4, 1, []]]]),
        (LETTERS, lambda v: v.clear(), ["=", []]),
        (LETTERS, lambda v: v.sort(), None),
        (ROWS, lambda v: v.append({}), ["+", [{}]]),
        (ROWS, lambda v: v[2]["tags"].append("x"), ["[", [[2, ["{", {"tags": ["+", ["x"]]}]]]]),
        (ROWS, lambda v: (v.pop(1), v[2].update(at=9)), ["[", [[1, 1, []], [3, ["{", {"at": ["=", 9]}]]]]),
        (ROWS, lambda v: v.__delitem__(0), ["[", [[0, 1, []]]]),
        ([1, 2], lambda v: v.__setitem__(0, True), ["[", [[0, ["=", True]]]]),
        ([1, 2], lambda v: v.__setitem__(0, 1.0), ["[", [[0, ["=", 1.0]]]]),
        ([0.0, 2], lambda v: v.__setitem__(0, -0.0), ["[", [[0, ["=", -0.0]]]]),
        ((1, [2]), lambda v: v[1].append(3), ["v", ["[", [[1, ["+", [3]]]]]]),
        (deque([1, 2], 2), lambda v: v.append(3), ["v", ["[", [[0, ["[", [[0, 1, []], [2, 0, [3]]]]]]]]),
        # dictionaries
        ({"a": 1, "b": 2}, lambda v: v.update(c=3), ["{", {}, [], {"c": 3}]),
        ({"a": 1, "b": 2}, lambda v: v.update(a=3), ["{", {"a": ["=", 3]}]),
        ({"a": 1, "b": 2}, lambda v: v.pop("a"), ["{", {}, ["a"]]),
        ({"a": 1, "b": 2}, lambda v: v.update(a=v.pop("a")), ["{", {}, ["a"], {"a": 1}]),
        ({"a": [1], "b": 2}, lambda v: v["a"].append(2), ["{", {"a": ["+", [2]]}]),
        ({"a": 1}, lambda v: Put(dict(v)), None),
        ({1: "x", "a": 1}, lambda v: v.update(a=2), ["{", {"a": ["=", 2]}]),
        ({1: "x", "a": 1}, lambda v: v.update({2: [3]}), ["d", [], [], [[2, [3]]]]),
        ({1: [0], "a": 1}, lambda v: v[1].append(2), ["d", [[1, ["+", [2]]]]]),
        ({(1,): 0, "a": 1}, lambda v: v.pop((1,)), ["=", {"a": 1}]),
        ({"a": 1}, lambda v: v.update({"$": 1}), ["=", {"$": "dict", "v": [["a", 1], ["$", 1]]}]),
        (OrderedDict(a=1, b=2), lambda v: v.move_to_end("a"), ["v", ["{", {}, ["a"], {"a": 1}]]),
        (Counter("ab"), lambda v: v.update("b"), ["v", ["{", {"b": ["=", 2]}]]),
        # sets
        ({"a", "c"}, lambda v: v.add("b"), ["v", ["s", [], ["b"]]]),
        ({"a", "c"}, lambda v: v.remove("a"), ["v", ["s", ["a"]]]),
        ({"a", "c"}, lambda v: v.remove("c"), ["v", ["s", ["c"]]]),
        ({"a", "\ud800", "\ue000"}, lambda v: v.add("\ud801"), ["v", ["s", [], [{"$": "str", "v": "7aCB"}]]]),
        ({"a", "\ud800", "\ue000"}, lambda v: v.remove("\ud800"), ["v", ["s", [{"$": "str", "v": "7aCA"}]]]),
        ({1, "c"}, lambda v: v.add(2), ["v", ["u", [], [2]]]),
        ({1, "c"}, lambda v: v.remove(1), ["=", {"$": "set", "v": ["c"]}]),
        ({1, 2}, lambda v: (v.remove(1), v.add(True)), ["v", ["u", [1], [True]]]),
        (frozenset("ab"), lambda v: Put(v | {"c"}), ["v", ["s", [], ["c"]]]),
        # objects
        (Typed(), lambda v: v.items.append(1), ["o", {"items": ["+", [1]]}]),
        (Data(), lambda v: setattr(v, "n", 1), ["o", {"n": ["=", 1]}]),
        (Record(1), lambda v: v.items.append(1), ["o", {"items": ["+", [1]]}]),
        (Checked(), lambda v: v.items.append(1), ["o", {"items": ["+", [1]]}]),
        (Said(text="a", parts=(1,)), lambda v: Put(attrs.evolve(v, text="b")), ["o", {"text": ["=", "b"]}]),
        (Point(1, [2]), lambda v: v.y.append(3), ["o", {"y": ["+", [3]]}]),
        (Point(1, 2), lambda _: Put(Point(3, 4)), ["=", {"$": "Point", "v": {"x": 3, "y": 4}}]),
        (Record(1), lambda _: Put(Said(text="a")), ["=", {"$": "Said", "v": {"text": "a", "parts": {"$": "tuple", "v": []}}}]),
        # all else
        (date(2024, 1, 1), lambda v: Put(v + timedelta(1)), ["=", {"$": "date", "v": "2024-01-02"}]),
        (date(2024, 1, 1), lambda _: Put(date(2024, 1, 1)), None),
        (bytearray(b"a"), lambda v: v.extend(b"b"), ["=", {"$": "bytearray", "v": "YWI="}]),
        (bytearray(b"a"), lambda v: Put(v[0]), ["=", 97]),
        (math.nan, lambda _: Put(float("nan")), None),
        (Decimal("1.0"), lambda _: Put(Decimal("1.00")), ["=", {"$": "Decimal", "v": "1.00"}]),
        ("a", lambda _: Put("a"), None),
    ],
)  # fmt: skip
def test_a_patch_has_what_changed(old, change, expected):
    """The patch of an edit has what was added, removed and changed, and nothing when nothing was."""
    assert expected == edited(fresh(old), change)


def test_a_list_at_two_places_is_two_lists():
    """The codec does not keep identity, so a list in the state twice grows at both places."""
    store, journal = journalled()

    async def main():
        async with store.edit_state() as state:
            state.items.append(state.items)
            state.items[0] = state.inner = [1]
        async with store.edit_state() as state:
            assert state.items[0] is state.inner
            state.inner.append(2)

    trio.run(main)

    assert journal.last == ["{", {"items": ["[", [[0, ["+", [2]]]]], "inner": ["+", [2]]}]
    journal.check()


@everywhere
def test_each_way_to_write_is_journalled(kind):
    """Edits, paths, whole states and clearing are written as patches, in their order."""

    async def main():
        store, journal = journalled(kind, table={"a": {"b": [1, 2]}, 1: 2}, inner=deque([[1]]))
        await store.set("table.a.b.1", 5)
        await store.set("table.a.c", 6)
        await store.set("inner.0.0", 7)
        await store.set("n", 8)
        async with store.edit_state() as state:
            state.items.append(9)
        state = await store.get_state()
        state.words.add("x")
        await store.set_state(state)
        await store.clear()
        journal.check()
        assert len(journal.lines) == 7

    trio.run(main)


@everywhere
def test_an_edit_that_changes_nothing_writes_nothing(kind):
    """Reading in a block, and writing an equal value, make no patch."""

    async def main():
        rows = [{"a": [1]}, {"b": {2}}]
        store, journal = journalled(kind, n=0, items=rows, words={"a"}, inner=Point([1], (2,)))
        async with store.edit_state():
            pass
        async with store.edit_state() as state:
            assert (state.items, state.words, state.n) == (rows, {"a"}, 0)
            state.table.update({})
            state.inner = Point([1], (2,))
        await store.set("n", 0)
        await store.set("items.0.a", [1])
        await store.set_state(await store.get_state())
        assert journal.lines == []

    trio.run(main)


# -- what identity does not tell --------------------------------------------------------------------


def test_a_committed_list_that_was_changed_and_set_again_is_written():
    """Programs for LlamaIndex get a list, append to it and set it again: nothing of it is lost."""

    async def main():
        store, journal = journalled(items=[1], table={"a": [1], "b": [2]})
        items = await store.get("items")
        items.append(2)
        await store.set("items", items)
        journal.check()

        table = await store.get("table")
        table["b"].append(3)
        await store.set("table", {**table})
        journal.check()
        assert len(journal.lines) == 2

        items.append(4)
        async with store.edit_state() as state:
            state.inner = [items, 5]
        items.append(6)
        await store.set("items", items)
        async with store.edit_state() as state:
            state.inner = [items, 7]
        journal.check()

    trio.run(main)


@everywhere
def test_a_state_that_was_changed_and_set_again_is_written(kind):
    """An object that belongs to the store already, and was changed nevertheless, is written whole."""

    async def main():
        store, journal = journalled(kind)
        state = DictState(NAMES) if kind is None else kind()
        await store.set_state(state)
        state.n = 5
        await store.set_state(state)
        journal.check()
        assert journal.last == ["=", encoded(state)]

    trio.run(main)


@pytest.mark.parametrize("kind", [None, Typed])
def test_objects_that_a_draft_does_not_copy_are_written_when_they_were_read(kind):
    """A block changes an object that compares by identity in place, so it may differ if it was read."""

    async def main():
        live = Live()
        store, journal = journalled(kind, inner=None)
        await store.set("inner", live)
        async with store.edit_state() as state:
            state.inner.n = 1
        journal.check()
        await store.set("inner", (live, [live]))
        async with store.edit_state() as state:
            state.inner[0].n = 2
        journal.check()
        await store.set("words", {Live()})
        async with store.edit_state() as state:
            (found,) = state.words
            found.n = 3
        state = await store.get_state()
        state.inner[0].n = 4
        await store.set_state(state)
        journal.check()
        lines = len(journal.lines)
        async with store.edit_state() as state:
            state.n += 1
        assert ({"n"}, lines + 1) == ({*journal.last[1]}, len(journal.lines))

    trio.run(main)


def test_a_struct_is_undone_and_compared_by_its_fields():
    """A msgspec.Struct that can change is copied in a draft, as other objects with fields are."""

    async def main():
        record = Record(1, [[1], [2]])
        store, journal = journalled(inner=None)
        await store.set("inner", [record, record])
        with pytest.raises(ZeroDivisionError):
            async with store.edit_state() as state:
                state.inner[0].items[1].append(3)
                raise ZeroDivisionError
        assert (await store.get("inner"))[1].items == [[1], [2]]
        async with store.edit_state() as state:
            assert state.inner[0] is state.inner[1]
            state.inner[0].items[1].append(3)
        assert journal.last[1]["inner"][1][1][1][1]["items"][1][0][1] == ["+", [3]]
        journal.check()

    trio.run(main)


def test_private_and_extra_values_of_a_model_are_compared():
    """What a model holds beside its fields is in the patches, by what changed of it."""

    async def main():
        store, journal = journalled(Checked, more=[1], rest=["y"] * 9)
        await store.set("n", 1)
        assert journal.last == [
            "o",
            {"n": ["=", 1], "__pydantic_fields_set__": ["v", ["s", [], ["n"]]]},
        ]
        async with store.edit_state() as state:
            state._private["a"] = [1]
        async with store.edit_state() as state:
            state._private["a"].append(2)
            state.more.append(3)
        more = ["o", {"__pydantic_extra__": ["{", {"more": ["+", [3]]}]}]
        more[1]["__pydantic_private__"] = ["{", {"_private": ["{", {"a": ["+", [2]]}]}]
        assert more == journal.last
        await store.set("n", 2)
        assert journal.last == ["o", {"n": ["=", 2]}]
        journal.check()
        with pytest.raises(ZeroDivisionError):
            async with store.edit_state() as state:
                state.more.append(4)
                state._private["a"].append(4)
                raise ZeroDivisionError
        assert (await store.get("more"), store.snapshot_state()._private["a"]) == ([1, 3], [1, 2])
        with pytest.raises(AttributeError, match="nothing"):
            async with store.edit_state() as state:
                state.nothing  # noqa: B018 - it raises

    trio.run(main)


def test_models_in_a_draft_keep_their_own_private_values():
    """Each model in a list gets copies of its own values."""
    models = [Checked(n=n, more=[n]) for n in range(50)]
    for model in models:
        model._private["n"] = [model.n]
    store = StateStore(None, DictState(models=models))

    async def main():
        async with store.edit_state() as state:
            found = [(m.n, m.more[0], m._private["n"][0]) for m in state.models]
            assert [(n, n, n) for n in range(50)] == found

    trio.run(main)


def test_fields_that_do_not_fit_their_annotations_stay_named():
    """The names of fields whose values a function of the class made come and go with their values."""

    async def main():
        store, journal = journalled(Typed)
        await store.set("n", 1)
        await store.set("code", [1])
        assert journal.last == ["o", {"code": ["+", ["1"]]}, ["code"]]
        async with store.edit_state() as state:
            state.code.append(2)
        assert journal.last == ["o", {"code": ["+", [2]]}, ["code"]]
        state = await store.get_state()
        del state.code[0]
        await store.set_state(state)
        assert journal.last == ["o", {"code": ["[", [[0, 1, []]]]}]
        await store.set("n", 2)
        journal.check()

    trio.run(main)


def test_attributes_that_are_no_fields_are_compared():
    """Attributes that were added to an object come, change and go."""

    async def main():
        store, journal = journalled(Data)
        for change in (
            lambda state: setattr(state, "more", [1]),
            lambda state: state.more.append(2),
            lambda state: setattr(state, "other", {"$": 1}),
            lambda state: setattr(state, "$", 1),
            lambda state: delattr(state, "$"),
            lambda state: delattr(state, "other"),
            lambda state: delattr(state, "more"),
        ):
            async with store.edit_state() as state:
                change(state)
            journal.check()
        assert journal.last == ["o", {}, [], ["=", {}]]

    trio.run(main)


def test_a_frozen_state_is_compared_by_its_fields():
    """A frozen state is replaced by a changed copy, and only what differs is written."""

    async def main():
        store, journal = journalled(Fixed, items=[[1], [2]], inner={"a": 1})
        await store.set_state(attrs.evolve(await store.get_state(), n=1))
        assert journal.last == ["o", {"n": ["=", 1]}]
        await store.set_state(await store.get_state())
        assert len(journal.lines) == 1
        journal.check()

    trio.run(main)


@attrs.define
class Derived(Typed):
    more: int = 1


def test_a_state_of_another_class_is_written_whole():
    """An object of a derived class replaces the whole state."""
    codec = Codec([Typed, Derived])

    async def main():
        store = StateStore(Typed)
        found = []
        store.journal = lambda change: found.append(make_patch(codec, change))
        await store.set_state(Derived(n=1))
        assert [["=", codec.encode(Derived(n=1), "state")]] == found

    trio.run(main)


def test_a_first_state_is_written_whole():
    """Where there was no state, the patch has all of it, and fits no state at all."""
    patch = make_patch(CODEC, StateChange(None, DictState(a=(1,))))

    assert apply_patch(None, patch) == {"a": {"$": "tuple", "v": [1]}}


# -- cost -------------------------------------------------------------------------------------------


class Counting(Codec):
    """A codec that counts the values that it is asked to write."""

    asked = 0

    def encode_part(self, value, depth):
        self.asked += 1
        return super().encode_part(value, depth)


@pytest.mark.parametrize("size", [10, 20_000])
def test_only_what_changed_is_encoded(size):
    """The number of encoded values, and the bytes, do not depend on the size of the state."""
    codec = Counting([*KNOWN])
    found = []

    async def main():
        rows = {f"key {n}": {"n": [n]} for n in range(size)}
        store = StateStore(None, DictState(n=0, big=["x" * 1000] * size, rows=rows, words={*rows}))
        store.journal = lambda change: found.append(make_patch(codec, change))
        async with store.edit_state() as state:
            state.n = 1
        async with store.edit_state() as state:
            state.big.append("y")
        async with store.edit_state() as state:
            state.rows["key 7"]["n"].append(8)
        async with store.edit_state() as state:
            state.rows["new"] = 1
            del state.rows["key 3"]
            state.words.add("z")
            state.big[:] = [*state.big[1:], "w"]
        await store.set("rows.key 7.n.1", 9)
        await store.set("big", [*await store.get("big"), "v"])

    trio.run(main)

    assert found[1] == ["{", {"big": ["+", ["y"]]}]
    assert found[2] == ["{", {"rows": ["{", {"key 7": ["{", {"n": ["+", [8]]}]}]}]
    assert (codec.asked, all(len(json.dumps(patch)) < 150 for patch in found)) == (9, True)


# -- failures ---------------------------------------------------------------------------------------


class Unknown:
    pass


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda state: setattr(state, "inner", Unknown()), "state.inner"),
        (lambda state: state.items.append(Unknown()), "state.items[3]"),
        (lambda state: state.items[1]["tags"].append(Unknown()), "state.items[1]['tags'][2]"),
        (lambda state: state.items.__setitem__(0, [Unknown()]), "state.items[0][0]"),
        (lambda state: state.table.update(a={"b": Unknown()}), "state.table['a']['b']"),
        (lambda state: state.table.update({Unknown(): 1}), "state.table.keys()[0]"),
        (lambda state: setattr(state.items[2], "inner", (1, Unknown())), "state.items[2].inner[1]"),
        (lambda state: setattr(state.items[2], "number", "x"), "state.items[2].number"),
        (lambda state: state.words.add(Unknown()), "state.words[0]"),
    ],
)
@everywhere
def test_a_value_that_cannot_be_kept_undoes_the_edit(kind, change, path):
    """The error names the path; the block raises it, and neither the state nor the journal changes."""

    async def main():
        items = [0, {"tags": ["a", "b"]}, Slotted(1)]
        store, journal = journalled(kind, items=items)
        before = store.snapshot_state()
        with pytest.raises(SnapshotError) as caught:
            async with store.edit_state() as state:
                state.n = 1
                change(state)
        assert f"{path} is" in str(caught.value)
        assert before is store.snapshot_state()
        assert (journal.lines, store.is_busy) == ([], False)
        await store.set("n", 2)
        journal.check()

    trio.run(main)


@everywhere
def test_a_write_that_cannot_be_kept_changes_nothing(kind):
    """``set``, ``set_state`` and the class of the state stay as they were."""

    async def main():
        store, journal = journalled(kind, table={"a": [1]})
        before = store.snapshot_state()
        for path, value, place in (
            ("inner", Unknown(), "state.inner is"),
            ("table.a.0", [Unknown()], "state.table['a'][0][0] is"),
            ("table.b", Unknown(), "state.table['b'] is"),
            ("table.c.d", Unknown(), "state.table['c']['d'] is"),
        ):
            with pytest.raises(SnapshotError) as caught:
                await store.set(path, value)
            assert place in str(caught.value)
        wrong = DictState(inner=Unknown()) if kind is None else type("Sub", (kind,), {})()
        with pytest.raises(SnapshotError, match="state"):
            await store.set_state(wrong)
        assert before is store.snapshot_state()
        async with store.edit_state() as state:
            assert type(state) is not type(wrong) or kind is None
            assert state.table == {"a": [1]}
        assert journal.lines == []

    trio.run(main)


def test_a_circle_is_refused_with_its_place():
    """A value that contains itself is refused as in a snapshot."""

    async def main():
        store, _ = journalled(items=[[1]])
        with pytest.raises(SnapshotError, match=r"state\.items\[0\]\[1\] holds itself"):
            async with store.edit_state() as state:
                state.items[0].append(state.items[0])
        with pytest.raises(SnapshotError, match="levels deep"):
            async with store.edit_state() as state:
                for _ in range(200):
                    state.items = [state.items]
        assert await store.get("items") == [[1]]

    trio.run(main)


def test_a_journal_that_fails_undoes_the_edit():
    """Any error of the journal leaves the block, and the next writer has its turn."""

    async def main():
        store = StateStore(None, DictState(n=0))

        def fail(_change):
            raise OSError("disk full")

        store.journal = fail
        for write in (store.set("n", 1), store.clear(), store.set_state(DictState(n=1))):
            with pytest.raises(OSError, match="disk full"):
                await write
        with pytest.raises(OSError, match="disk full"):
            async with store.edit_state() as state:
                state.n = 1
        assert (await store.get("n"), store.is_busy) == (0, False)
        store.journal = None
        await store.set("n", 1)
        assert await store.get("n") == 1

    trio.run(main)


def test_an_interrupt_comes_before_or_after_both():
    """Ctrl-C while a change is written down comes when it is written down and made."""
    store = StateStore(None, DictState(n=0))
    written = []

    def write(change):
        signal.raise_signal(signal.SIGINT)
        written.append(change.new)

    async def main():
        store.journal = write
        await store.set("n", 1)
        await trio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)

    assert [store.snapshot_state()] == written


@pytest.mark.parametrize(
    "patch",
    [
        ["?"], [], ["{", {"b": ["=", 1]}], ["{", {}, ["b"]], ["+", [1]], ["v", ["=", 1]], ["o", {"b": ["=", 1]}],
        ["{", {"a": ["[", [[9, ["=", 1]]]]}], ["{", {"a": ["[", [[9, 0, [1]]]]}], ["{", {"s": ["v", ["s", ["b"]]]}],
        ["{", {"s": ["v", ["u", ["b"]]]}], ["{", {"d": ["d", [[2, ["=", 1]]]]}], ["{", {"d": ["d", [], [2]]}],
        ["{", 1], ["=", 1, 2], ["{", {"a": ["[", [[0, 2, []]]]}],
    ],
    ids=str,
)  # fmt: skip
def test_a_patch_of_another_state_is_refused(patch):
    """A patch that does not fit says so, and what was expected."""
    state = encoded(DictState(a=[1], s={"a"}, d={1: 2}))

    with pytest.raises(SnapshotError, match=r"a patch does not fit .*; expected the patches"):
        apply_patch(state, patch)
