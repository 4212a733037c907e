"""The state of a run: reading, writing, taking turns, and being undone."""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import json
import threading
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import anyio
import attrs
import pydantic
import pytest
import trio

from sluicegate import Context, StartEvent, StopEvent, Workflow, WorkflowRuntimeError, step
from sluicegate._state.drafts import DictState, StatePathError
from sluicegate._state.store import StateStore
from tests.helpers import Item, Mine, Single, cancelled_class, nothing_left, wait_until_idle


@attrs.define
class Address:
    city: str = "Ghent"
    lines: list[str] = attrs.Factory(list)


@attrs.define
class Slotted:
    n: int = 0
    tags: list[str] = attrs.Factory(list)
    address: Address = attrs.Factory(Address)
    lock: trio.Lock | None = None
    mode: Literal["a", "b"] = "a"
    ratio: float = 1.0
    table: dict[str, list[int]] = attrs.Factory(dict)

    def double(self):
        self.n *= 2


@dataclasses.dataclass
class Plain:
    n: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)
    address: Address = dataclasses.field(default_factory=Address)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    n: int = 0
    tags: list[str] = []
    address: Address = pydantic.Field(default_factory=Address)


@attrs.frozen
class Frozen:
    n: int = 0


class Pair(NamedTuple):
    left: list[int]
    right: int


typed = pytest.mark.parametrize("kind", [Slotted, Plain, Model])
anywhere = pytest.mark.parametrize("kind", [None, Slotted, Plain, Model])


def new_store(kind):
    """Return a store with the fields n, tags and address."""
    if kind is None:
        return StateStore(None, DictState(n=0, tags=[], address=Address()))
    return StateStore(kind)


# -- DictState --------------------------------------------------------------------------------------


def test_dict_state_is_attributes_and_items():
    """Attributes and items are the same; methods of a dictionary that are names stay names."""
    state = DictState({"items": [1]}, count=2)
    state.more = 3
    state["get"] = 4
    del state.count

    assert state.items == [1]
    assert state["more"] == state.more == state.get("more") == 3
    assert state.get("count", 9) == 9
    assert "get" in state
    assert list(state) == ["items", "more", "get"]
    assert len(state) == 3
    assert state.to_dict() == {"items": [1], "more": 3, "get": 4}
    assert copy.deepcopy(state) == copy.copy(state) == state
    assert repr(state) == "DictState({'items': [1], 'more': 3, 'get': 4})"


def test_dict_state_tells_what_it_has():
    """A name that is not there is an AttributeError or a KeyError; a method cannot be overwritten."""
    state = DictState(count=1)
    with pytest.raises(AttributeError, match=r"no 'cuont', it has 'count'; expected state.get"):
        state.cuont  # noqa: B018
    with pytest.raises(AttributeError, match="no 'cuont'"):
        del state.cuont
    with pytest.raises(KeyError):
        state["cuont"]
    with pytest.raises(AttributeError, match=r"expected state\['get'\] = "):
        state.get = 1


# -- making -----------------------------------------------------------------------------------------


def test_store_needs_no_event_loop():
    """A store is made, seeded and looked at outside any event loop."""
    store = StateStore(Slotted, Slotted(n=4))

    assert store.snapshot_state() == Slotted(n=4)
    assert repr(store) == "<StateStore of Slotted, at rest, 0 waiting>"


def test_class_that_cannot_be_made_names_its_fields():
    """A state is constructed without arguments; the error names what lacks a default."""

    @attrs.define
    class Needs:
        user: str
        age: int
        n: int = 0

    class NeedsToo(pydantic.BaseModel):
        user: str

    with pytest.raises(TypeError, match=r"without 'user', 'age'; expected .* `user: int = 0`"):
        StateStore(Needs)
    with pytest.raises(TypeError, match="NeedsToo cannot be made without 'user'"):
        StateStore(NeedsToo)
    with pytest.raises(TypeError, match="cannot be a state; expected an attrs class"):
        StateStore(int)
    with pytest.raises(TypeError, match="is not a Slotted"):
        StateStore(Slotted, Plain())


# -- paths ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_paths_go_through_all_kinds_of_containers():
    """Dictionaries, sequences, named tuples and attributes, in any order."""
    store = StateStore()
    await store.set("user", {"tags": ["a", Pair([7], 8)], "address": Address()})

    assert await store.get("user.tags.0") == "a"
    assert await store.get("user.tags.1.left.0") == 7
    assert await store.get("user.address.city") == "Ghent"
    assert await store.get("user.name", default=None) is None
    assert await store.get("user.tags.0.upper", "none") == "none"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("name", "the state is a DictState with 'user'"),
        ("user.age", "'user' is a dict with 'tags', 'address'"),
        ("user.tags.3", "'user.tags' is a list of 1"),
        ("user.tags.x", "'user.tags' is a list of 1"),
        ("user.address.zip", "'user.address' is a Address with 'city', 'lines'"),
        ("user.tags.0.x.y", "'user.tags.0' is a str"),
    ],
)
async def test_missing_path_names_the_longest_part_that_is_there(path, where):
    """The error is a LookupError and a ValueError, and says what is there instead."""
    store = StateStore(None, DictState(user={"tags": ["a"], "address": Address()}))
    with pytest.raises(StatePathError) as caught:
        await store.get(path)

    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, WorkflowRuntimeError)
    assert (
        str(caught.value) == f"{path!r} leads nowhere: {where}; expected get({path!r}, default=...)"
    )


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", ".", "a..b", ".a", "a.", "__class__", "a.__dict__"])
async def test_what_is_no_path_is_refused(path):
    """Empty parts and dunder names are errors, default or not, in reading and in writing."""
    store = StateStore(None, DictState(a={}))
    with pytest.raises(StatePathError, match="is not a path"):
        await store.get(path, default=1)
    with pytest.raises(StatePathError, match="is not a path"):
        await store.set(path, 1)


@pytest.mark.anyio
async def test_negative_index_is_refused():
    """An index counts from the beginning; a dictionary may have such a name."""
    store = StateStore(None, DictState(a=[1], d={"-1": 2}))
    with pytest.raises(StatePathError, match="'-1' counts from the end"):
        await store.get("a.-1", default=1)
    with pytest.raises(StatePathError, match="'-1' counts from the end"):
        await store.set("a.-1", 1)

    assert await store.get("d.-1") == 2


@pytest.mark.anyio
async def test_set_makes_dictionaries_and_nothing_else():
    """Missing dictionaries are made on the way; an index or a field must be there."""
    store = StateStore(None, DictState(tags=["a"], address=Address(), pair=(1,), lock=trio.Lock()))
    await store.set("deep.er.still", 1)
    await store.set("tags.0", "b")
    await store.set("address.city", "Bruges")

    assert await store.get("deep") == {"er": {"still": 1}}
    assert await store.get("tags") == ["b"]
    assert await store.get("address") == Address("Bruges")

    before = store.snapshot_state()
    for path, match in [
        ("tags.1", "expected an index that it has"),
        ("tags.1.x", "expected an index that it has"),
        ("address.zip", "expected a field that it declares"),
        ("address.zip.code", "expected a field that it declares"),
        ("pair.0", "expected a change in"),
        ("lock.name", "expected a change in"),
        ("tags.0.x", "expected a change in"),
    ]:
        with pytest.raises(StatePathError, match=match):
            await store.set(path, 1)
    assert store.snapshot_state() is before


@pytest.mark.anyio
@typed
async def test_typed_state_takes_no_undeclared_attribute(kind):
    """A field that the class does not declare is refused, a method's name too."""
    store = StateStore(kind)
    for name in ["m", "__init__", "__eq__", "double"]:
        with pytest.raises(StatePathError):
            await store.set(name, 1)

    assert store.snapshot_state() == kind()


# -- edit_state -------------------------------------------------------------------------------------


@pytest.mark.anyio
@anywhere
async def test_edit_commits_real_containers(kind):
    """What is changed in place in the block is there after it, as plain lists and objects."""
    store = new_store(kind)
    before = store.snapshot_state()
    async with store.edit_state() as state:
        state.n += 1
        state.tags.append("x")
        state.address.lines.append("y")
        assert type(state.tags) is list
        assert state.tags is state.tags
        assert isinstance(state, kind or DictState)

    after = await store.get_state()
    assert (after.n, after.tags, after.address) == (1, ["x"], Address("Ghent", ["y"]))
    assert (before.n, before.tags, before.address) == (0, [], Address())
    assert type(store.snapshot_state()) is (kind or DictState)
    assert type(store.snapshot_state().tags) is list
    assert type(store.snapshot_state().address) is Address


@pytest.mark.anyio
@anywhere
async def test_error_undoes_everything(kind):
    """After an error the state is the same object that it was, nested lists included."""
    store = new_store(kind)
    before, error = store.snapshot_state(), Mine()
    with pytest.raises(Mine) as caught:
        async with store.edit_state() as state:
            state.n = 5
            state.tags += ["x"]
            state.address.lines.append("y")
            state.address.city = "z"
            raise error

    assert caught.value is error
    assert store.snapshot_state() is before
    assert (before.n, before.tags, before.address) == (0, [], Address())


@pytest.mark.anyio
async def test_error_undoes_changes_in_every_kind_of_container():
    """Lists in tuples, default dictionaries, deques, sets, nested states: all are copies."""

    def build():
        return DictState(
            pair=Pair([1], 2),
            groups=collections.defaultdict(list, a=[1]),
            queue=collections.deque([[1]], maxlen=3),
            seen={1},
            inner=DictState(x=[1]),
            plain=Plain(tags=["a"]),
            model=Model(tags=["a"]),
            raw=bytearray(b"a"),
        )

    def change(state):
        state.pair.left.append(2)
        state.groups["b"].append(2)
        state.groups["a"].append(2)
        state.queue[0].append(2)
        state.seen.add(2)
        state.inner.x.append(2)
        state.plain.tags.append("b")
        state.model.n, state.model.tags[0] = 2, "b"
        state.raw += b"b"

    store = StateStore(None, build())
    with suppress(Mine):
        async with store.edit_state() as state:
            change(state)
            raise Mine
    assert store.snapshot_state() == build()
    assert store.snapshot_state().model.model_fields_set == {"tags"}

    expected = build()
    change(expected)
    async with store.edit_state() as state:
        change(state)
    assert store.snapshot_state() == expected
    assert store.snapshot_state().groups.default_factory is list
    assert store.snapshot_state().queue.maxlen == 3


@pytest.mark.anyio
async def test_one_list_at_two_places_stays_one():
    """What is shared, or goes in a circle, is copied as such."""
    shared: list[Any] = []
    shared.append(shared)
    store = StateStore(None, DictState(a=shared, b={"c": shared}))
    async with store.edit_state() as state:
        state.a.append(1)
        assert state.b["c"] is state.a
        assert state.a[0] is state.a

    assert len(shared) == 1


@pytest.mark.anyio
async def test_what_the_block_puts_in_is_its_own():
    """A list that was put in is that list, and is not copied when it is looked at again."""
    store = StateStore()
    async with store.edit_state() as state:
        state.rows = rows = [[]]
        state.rows[0].append(1)
        rows.append(2)

    assert await store.get("rows") == [[1], 2]


@pytest.mark.anyio
@anywhere
async def test_draft_is_cut_off_when_its_block_is_left(kind):
    """What is assigned to a draft after its block does not reach the state."""
    store = new_store(kind)
    async with store.edit_state() as state:
        state.n = 1
    state.n = 2
    state.tags = ["late"]

    assert await store.get("n") == 1
    assert await store.get("tags") == []


@pytest.mark.anyio
@anywhere
async def test_readers_see_what_is_committed(kind):
    """In the middle of a block everyone, its own task too, reads the state as it was."""
    store = new_store(kind)
    async with store.edit_state() as state:
        state.n = 1
        state.tags.append("x")

        assert await store.get("n") == 0
        assert await store.get("tags") == []
        assert (await store.get_state()).n == 0
    assert await store.get("n") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [None, Slotted])
async def test_live_objects_survive(kind):
    """LlamaIndex #173, #709: a lock in the state is neither copied nor a reason to fail."""
    lock = trio.Lock()
    store = StateStore(kind, DictState(lock=lock, n=0) if kind is None else Slotted(lock=lock))
    await store.set("n", 1)
    async with store.edit_state() as state:
        assert state.lock is lock
        state.n += 1

    assert await store.get("lock") is lock
    assert (await store.get_state()).lock is lock
    assert await store.get("n") == 2


@pytest.mark.anyio
@anywhere
async def test_what_is_not_touched_is_not_copied(kind):
    """The cost of a write does not depend on what it leaves alone: that is the same object."""
    store = new_store(kind)
    async with store.edit_state() as state:
        state.tags = ["x"] * 1000
    before = store.snapshot_state()
    async with store.edit_state() as state:
        state.n += 1
    await store.set("n", 5)
    await store.set("address.city", "Bruges")

    assert store.snapshot_state() is not before
    assert store.snapshot_state().tags is before.tags
    assert before.n == 0


@pytest.mark.anyio
@anywhere
async def test_state_that_was_read_does_not_leak(kind):
    """LlamaIndex: a list reached through get_state() was the store's own. Here it is a copy."""
    store = new_store(kind)
    state = await store.get_state()
    state.tags.append("x")
    state.n = 3
    state.address.lines.append("y")

    assert await store.get("tags") == []
    assert await store.get("n") == 0

    await store.set_state(state)
    assert await store.get("tags") == ["x"]
    assert await store.get("address.lines") == ["y"]
    assert type(store.snapshot_state()) is (kind or DictState)


@pytest.mark.anyio
@typed
async def test_draft_is_an_object_of_its_class(kind):
    """Equality, copies and repr of a draft are those of the class."""
    store = StateStore(kind)
    state = await store.get_state()

    assert state == kind()
    assert state.__class__ is kind
    assert repr(state) == repr(kind())
    twin = copy.copy(state)
    assert type(twin) is kind
    twin.tags.append("x")
    assert await store.get("tags") == []
    assert type(copy.deepcopy(state)) is kind


@pytest.mark.anyio
async def test_methods_of_a_draft_change_the_draft():
    """A state's own methods work in the block."""
    store = StateStore(Slotted, Slotted(n=4))
    async with store.edit_state() as state:
        state.double()

    assert await store.get("n") == 8


def test_hooks_of_a_class_do_not_see_its_drafts():
    """A class that keeps a register of its subclasses gets no entry for a draft."""
    made = []

    class Base:
        def __init_subclass__(cls, *, key, **options):
            made.append(key)

    @attrs.define(slots=False)
    class State(Base, key="state"):
        n: int = 0

    async def main():
        store = StateStore(State)
        async with store.edit_state() as state:
            state.n = 2
        return await store.get("n")

    assert trio.run(main) == 2
    assert made == ["state"]


@pytest.mark.anyio
async def test_frozen_state_is_replaced():
    """A frozen state cannot be edited in place; the error shows how it is replaced."""
    store = StateStore(Frozen)
    with pytest.raises(TypeError, match=r"set_state\(attrs.evolve"):
        store.edit_state()
    with pytest.raises(TypeError, match=r"set_state\(attrs.evolve"):
        await store.set("n", 1)
    await store.set_state(attrs.evolve(await store.get_state(), n=1))

    assert store.snapshot_state() == Frozen(1)


# -- types ------------------------------------------------------------------------------------------


@pytest.mark.anyio
@typed
async def test_typed_writes_are_checked(kind):
    """LlamaIndex: an int field took a string. Here class, field and value are named."""
    store = StateStore(kind)
    before = store.snapshot_state()
    match = rf"{kind.__name__}\.n would be 'many', which is not "
    with pytest.raises(TypeError, match=match):
        await store.set("n", "many")
    with pytest.raises(TypeError, match=match):
        async with store.edit_state() as state:
            state.tags.append("fine")
            state.n = "many"
    with pytest.raises(TypeError, match=rf"{kind.__name__}\.tags would be \[1\]"):
        async with store.edit_state() as state:
            state.tags.append(1)
    with pytest.raises(TypeError, match="is not a "):
        await store.set_state(DictState())
    wrong = kind()
    wrong.n = "many"
    with pytest.raises(TypeError, match=match):
        await store.set_state(wrong)

    assert store.snapshot_state() is before
    assert before == kind()
    await store.set("n", 1)
    assert await store.get("n") == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("address", Address(), {"city": "Ghent"}),
        ("lock", trio.Lock(), "lock"),
        ("lock", None, 0),
        ("mode", "b", "c"),
        ("ratio", 2, "2"),
        ("table", {"a": [1]}, {"a": ["1"]}),
        ("table", {}, {1: []}),
        ("tags", [], ()),
    ],
)
async def test_annotations_are_checked_without_conversion(field, good, bad):
    """Unions, literals, containers and classes of live objects; nothing is converted."""
    store = StateStore(Slotted)
    await store.set(field, good)
    with pytest.raises(TypeError, match=rf"Slotted\.{field} would be "):
        await store.set(field, bad)

    assert await store.get(field) is good


@pytest.mark.anyio
async def test_nested_objects_are_checked_on_the_path():
    """set() checks the field of the class that it is in, wherever that stands."""
    store = StateStore()
    await store.set("user", Plain())
    with pytest.raises(TypeError, match=r"Address\.city would be 1, which is not str"):
        await store.set("user.address.city", 1)

    assert await store.get("user") == Plain()


@pytest.mark.anyio
async def test_pydantic_validates_in_its_own_way():
    """A model's own conversions and validators run, and their error is the cause."""
    store = StateStore(Model)
    await store.set("n", "5")
    assert await store.get("n") == 5

    with pytest.raises(TypeError) as caught:
        await store.set("n", "five")
    assert isinstance(caught.value.__cause__, pydantic.ValidationError)


@attrs.define
class Guarded:
    n: int = attrs.field(default=1, validator=attrs.validators.gt(0))
    text: str = attrs.field(default="", converter=str)


@pytest.mark.anyio
async def test_validators_and_converters_of_attrs_run():
    """An assignment does what the class says, on a path and in a block; a refusal undoes it."""
    store = StateStore(Guarded)
    before = store.snapshot_state()
    with pytest.raises(ValueError, match="must be > 0"):
        await store.set("n", -1)
    with pytest.raises(ValueError, match="must be > 0"):
        async with store.edit_state() as state:
            state.n = -1
    assert store.snapshot_state() is before

    await store.set("text", 5)
    async with store.edit_state() as state:
        state.n, state.text = 2, int(state.text) + 1
    assert store.snapshot_state() == Guarded(2, "6")


class Family:
    """A class of states, one that it is derived from, and one that is derived from it."""

    def __init__(self, make):
        self.base = make("Base", (), {"name": str, "tags": list[str]}, {"name": "b"})
        self.own = make("Own", (self.base,), {"count": int}, {"count": 1})
        self.derived = make("Derived", (self.own,), {"more": str}, {"more": "m"})


def made_by_attrs(name, bases, notes, defaults):
    body = {"__annotations__": notes, **defaults}
    if "tags" in notes:
        body["tags"] = attrs.field(factory=list)
    return attrs.define(type(name, bases, body))


def made_by_dataclass(name, bases, notes, defaults):
    body = {"__annotations__": notes, **defaults}
    if "tags" in notes:
        body["tags"] = dataclasses.field(default_factory=list)
    return dataclasses.dataclass(type(name, bases, body))


def made_by_pydantic(name, bases, notes, defaults):
    body = {"__annotations__": notes, "__module__": __name__, **defaults}
    if "tags" in notes:
        body["tags"] = pydantic.Field(default_factory=list)
    return type(pydantic.BaseModel)(name, bases or (pydantic.BaseModel,), body)


families = pytest.mark.parametrize("make", [made_by_attrs, made_by_dataclass, made_by_pydantic])


@families
@pytest.mark.anyio
async def test_a_state_of_a_derived_class_is_taken(make):
    """It is the state from then on, with its fields and their annotations; clear() makes the own."""
    family = Family(make)
    store = StateStore(family.own)
    state = family.derived(more="x")
    await store.set_state(state)

    assert store.snapshot_state() is state
    await store.set("more", "y")
    async with store.edit_state() as draft:
        draft.more += "z"
        draft.tags.append("t")
    with pytest.raises(TypeError, match=r"Derived\.more would be 5"):
        await store.set("more", 5)
    kept = store.snapshot_state()
    assert (type(kept), kept.more, kept.tags, kept.count) == (family.derived, "yz", ["t"], 1)
    assert type(await store.get_state()).__name__ == "Derived"
    assert StateStore(family.own, kept).snapshot_state() is kept
    await store.clear()
    assert type(store.snapshot_state()) is family.own


@families
@pytest.mark.anyio
async def test_a_state_of_a_parent_class_gives_its_fields(make):
    """The fields that the parent has are taken over, and all others stay as they were."""
    family = Family(make)
    store = StateStore(family.own)
    await store.set("count", 7)
    before = store.snapshot_state()
    await store.set_state(family.base(name="new", tags=["t"]))
    after = store.snapshot_state()

    assert type(after) is family.own
    assert (after.name, after.tags, after.count) == ("new", ["t"], 7)
    assert (before.name, before.tags) == ("b", [])
    wrong = family.base()
    wrong.name = 5
    with pytest.raises(TypeError, match=r"Own\.name would be 5"):
        await store.set_state(wrong)
    assert store.snapshot_state() is after


@families
@pytest.mark.anyio
async def test_a_state_of_an_unrelated_class_is_refused(make):
    """What is neither derived from the state's class nor a parent of it is no state."""
    store = StateStore(Family(make).own)
    for other in (Family(make).own(), Family(made_by_attrs).base(), object(), DictState(), {}):
        with pytest.raises(TypeError, match=r"expected set_state\(Own\(\.\.\.\)\)"):
            await store.set_state(other)


@pytest.mark.anyio
async def test_no_update_is_lost():
    """Blocks exclude one another, whatever is awaited in them."""
    store = StateStore(None, DictState(n=0))

    async def add():
        for _ in range(10):
            async with store.edit_state() as state:
                n = state.n
                await anyio.lowlevel.checkpoint()
                state.n = n + 1

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(add)

    assert await store.get("n") == 100


async def queue_up(store, group, names, order):
    """Start writers that wait, one after the other."""
    for name in names:

        async def write(name=name):
            async with store.edit_state():
                order.append(name)

        group.start_soon(write)
        await wait_until_idle()


@pytest.mark.anyio
async def test_writers_take_turns_in_order():
    """Who came first writes first."""
    store, order = StateStore(), []
    async with anyio.create_task_group() as group, store.edit_state():
        await queue_up(store, group, "abcde", order)
        assert repr(store) == "<StateStore of DictState, being written, 5 waiting>"
        assert order == []

    assert order == list("abcde")


@pytest.mark.anyio
@anywhere
async def test_write_in_the_own_block_is_refused(kind):
    """LlamaIndex's nested writer: an error that shows the draft, never a deadlock."""
    store = new_store(kind)
    async with store.edit_state() as state:
        for write in (
            lambda: store.set("n", 2),
            store.clear,
            lambda: store.set_state(state),
            store.edit_state().__aenter__,
        ):
            with pytest.raises(WorkflowRuntimeError, match="expected a change of the draft"):
                await write()
        state.n = 7

    assert await store.get("n") == 7


@pytest.mark.anyio
async def test_cancelled_writer_gives_up_its_place():
    """Cancelled while it waits, a writer leaves nothing behind; the next one has its turn."""
    store, order = StateStore(), []
    with nothing_left():
        async with anyio.create_task_group() as group, store.edit_state():
            scope = anyio.CancelScope()

            async def give_up():
                with scope:
                    await store.set("n", 1)

            group.start_soon(give_up)
            await wait_until_idle()
            await queue_up(store, group, "a", order)
            scope.cancel()
            await wait_until_idle()
            assert repr(store).endswith("1 waiting>")

    assert order == ["a"]
    assert "n" not in store.snapshot_state()


def test_native_cancellation_of_a_writer_whose_turn_has_come():
    """``Task.cancel()`` reaches a task that is woken already: the turn goes to the next one."""

    async def main():
        store = StateStore()
        async with store.edit_state():
            first = asyncio.create_task(store.set("first", 1))
            await wait_until_idle()
            second = asyncio.create_task(store.set("second", 2))
            await wait_until_idle()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        return store

    store = asyncio.run(main())

    assert store.snapshot_state() == DictState(second=2)
    assert repr(store) == "<StateStore of DictState, at rest, 0 waiting>"


@pytest.mark.anyio
@anywhere
async def test_cancellation_in_the_block_undoes_it(kind):
    """A block that is cancelled has changed nothing, and the next writer continues."""
    store = new_store(kind)
    before = store.snapshot_state()
    with anyio.CancelScope() as scope:
        async with store.edit_state() as state:
            state.tags.append("x")
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert store.snapshot_state() is before
    assert before.tags == []

    await store.set("n", 3)
    assert await store.get("n") == 3


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["get", "set", "clear", "get_state", "set_state", "edit_state"])
async def test_cancelled_call_has_changed_nothing(name):
    """Every method looks for a cancellation before it does anything."""
    store = StateStore(None, DictState(n=1))
    before = store.snapshot_state()
    call = {
        "get": lambda: store.get("n"),
        "set": lambda: store.set("n", 2),
        "clear": store.clear,
        "get_state": store.get_state,
        "set_state": lambda: store.set_state(DictState()),
        "edit_state": store.edit_state().__aenter__,
    }[name]
    with anyio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(cancelled_class()):
            await call()
        await anyio.lowlevel.checkpoint()

    assert store.snapshot_state() is before
    assert repr(store) == "<StateStore of DictState, at rest, 0 waiting>"


@pytest.mark.anyio
async def test_loop_of_store_calls_gives_others_a_turn():
    """P3: a task that does nothing but read and write does not keep the event loop to itself."""
    store, told = StateStore(None, DictState(n=0)), []

    async def other():
        told.append(await store.get("n"))

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        while not told:
            await store.set("n", (await store.get("n")) + 1)


@pytest.mark.anyio
@anywhere
async def test_clear_begins_anew(kind):
    """clear() gives the state that a new store has."""
    store = StateStore(kind)
    await store.set("n", 4)
    await store.clear()

    assert store.snapshot_state() == (DictState() if kind is None else kind())


@pytest.mark.anyio
@pytest.mark.peer("note 1.5")
async def test_most_derived_state_wins_for_all_steps():
    """Steps that name a state and one derived from it share one object of the latter."""

    @attrs.define
    class Base:
        count: int = 0

    @attrs.define
    class Derived(Base):
        name: str = "x"

    class Both(Workflow[str]):
        @step
        async def begin(self, ctx: Context[Base], ev: StartEvent) -> Item:
            await ctx.store.set("count", 2)
            return Item(number=1)

        @step
        async def end(self, ctx: Context[Derived], ev: Item) -> StopEvent:
            state = await ctx.store.get_state()
            return StopEvent(result=state)

    state = await Both().run()
    assert isinstance(state, Derived)
    assert (state.count, state.name) == (2, "x")


@pytest.mark.anyio
@pytest.mark.peer("users 52")
async def test_runs_of_one_object_share_no_state():
    """State belongs to a run; concurrent requests do not see each other's."""
    both = anyio.Event()
    written = 0

    async def work(ctx):
        nonlocal written
        await ctx.store.set("mine", ctx.run_id)
        written += 1
        if written == 2:
            both.set()
        await both.wait()
        return await ctx.store.get("mine")

    workflow = Single(work)
    async with anyio.create_task_group() as group:
        one, two = (workflow.run(run_id=name).start_soon(group) for name in ("one", "two"))

    assert (one.result(), two.result()) == ("one", "two")


@pytest.mark.anyio
@pytest.mark.peer("users 31")
async def test_state_may_hold_what_cannot_be_copied():
    """A lock or a module in the state is neither copied nor in the way of events."""
    lock = threading.Lock()

    async def work(ctx):
        await ctx.store.set("lock", lock)
        async with ctx.store.edit_state() as state:
            state.module = json
        return await ctx.store.get("lock"), await ctx.store.get("module")

    assert await Single(work).run() == (lock, json)
