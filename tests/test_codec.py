"""The codec of snapshots: what comes back is what was kept, and nothing else ever comes out."""

# ruff: noqa: DTZ001 - datetimes without a zone are values like others

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import json
import math
import pickle
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sluicegate import Event, StartEvent
from sluicegate._data.codec import TAG, Codec
from sluicegate._errors import RestoredError, SnapshotError, WorkflowRuntimeError
from tests.helpers import steady_id


T = TypeVar("T")
Count = NewType("Count", int)


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"
    AZURE = "blue"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Loose(enum.Flag, boundary=enum.KEEP):
    ONE = 1


class Client:
    """A class that says nothing of its fields."""


@attrs.define
class Slotted:
    number: int
    inner: Any = None
    _private: list[int] = attrs.field(factory=list)
    unset: int = attrs.field(init=False)


@attrs.frozen(cache_hash=True)
class Hashed:
    text: str


@attrs.frozen(slots=False, cache_hash=True)
class HashedDict:
    text: str


@dataclasses.dataclass
class Plain:
    number: float
    inner: Any = None
    late: str = dataclasses.field(init=False, repr=False)
    runs: int = dataclasses.field(default=0, repr=False)

    def __post_init__(self):
        self.runs += 1

    @functools.cached_property
    def costly(self):
        return object()


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    items: tuple[Color, ...] = ()
    client: str = None  # type: ignore[assignment]


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Pair(NamedTuple):
    left: int
    right: Any = None


Untyped = namedtuple("Untyped", "a b")  # noqa: PYI024 - the other kind


class Deep(pydantic.BaseModel):
    color: Color


class Model(pydantic.BaseModel, extra="allow"):
    deep: Deep
    when: date = date(2024, 1, 1)
    _secret: bytes = pydantic.PrivateAttr(default=b"")

    @pydantic.field_validator("when")
    @classmethod
    def _never_twice(cls, value):
        return value + timedelta(days=1)


class Struct(msgspec.Struct, frozen=True):
    number: int
    unset: int | msgspec.UnsetType = msgspec.UNSET
    inner: Any = None


class Options(TypedDict):
    color: Level


class Draft(Event):
    text: str
    items: list[Any] = []
    _seen: set[int] = set()


class Note(Event):
    pass


class Wide(Event, open=True):
    number: int = 0


class Counted(Event):
    made = 0
    number: int

    def __attrs_post_init__(self):
        type(self).made += 1


KNOWN = [
    Color, Level, Word, Right, Loose, Slotted, Hashed, HashedDict, Plain, Frozen, Box, Pair, Untyped,
    Deep, Model, Struct, Draft, Note, Wide, Counted,
]  # fmt: skip
CODEC = Codec(KNOWN)


def same(a, b):
    """Whether two values are equal in every part, and of the same types."""
    if type(a) is not type(b):
        return False
    if type(a) is int:
        return a == b
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, complex):
        return same([a.real, a.imag], [b.real, b.imag])
    if isinstance(a, (datetime, time)):
        kept = (a.tzinfo, type(a.tzinfo), a.fold, a.replace(tzinfo=None), str(a.tzinfo))
        return kept == (b.tzinfo, type(b.tzinfo), b.fold, b.replace(tzinfo=None), str(b.tzinfo))
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, (list, tuple, deque)):
        limits = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return limits and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        left = list(b)
        for item in a:
            found = next((n for n, other in enumerate(left) if same(item, other)), None)
            if found is None:
                return False
            del left[found]
        return not left
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, pydantic.BaseModel):
        return same(
            [a.__dict__, a.model_fields_set, a.model_extra, a.__pydantic_private__],
            [b.__dict__, b.model_fields_set, b.model_extra, b.__pydantic_private__],
        )
    if isinstance(a, msgspec.Struct):
        return same(msgspec.structs.astuple(a), msgspec.structs.astuple(b))
    if isinstance(a, (Event, Plain, Box)):
        return same(a.__dict__, b.__dict__)
    if attrs.has(type(a)):
        names = [f.name for f in attrs.fields(type(a))]
        unset = object()
        held = [[getattr(each, n, unset) for n in names] for each in (a, b)]
        return all(x is y or same(x, y) for x, y in zip(*held, strict=True))
    if dataclasses.is_dataclass(a):
        return same(dataclasses.astuple(a), dataclasses.astuple(b))
    if isinstance(a, enum.Flag) and type(a)(a.value) is not a:
        return a.value == b.value  # before 3.11.4, each call makes unknown bits of KEEP anew
    return a == b and str(a) == str(b)


def through(value, codec=CODEC):
    """Return what a value is after a snapshot that went through a file."""
    data = codec.encode(value, "value")
    text = json.dumps(data, allow_nan=False)
    text.encode()
    assert msgspec.json.decode(msgspec.json.encode(data)) == data
    assert json.loads(text) == data
    return codec.decode(json.loads(text), "value")


def refusal(call, *args):
    """Return the message with which a snapshot is refused."""
    with pytest.raises(SnapshotError) as caught:
        call(*args)
    return str(caught.value)


# -- what is kept -------------------------------------------------------------------------------


ZONES = st.sampled_from(
    [UTC, timezone(timedelta(hours=1)), timezone(timedelta(minutes=-90), "odd"), ZoneInfo("Europe/Berlin")]
)  # fmt: skip
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)
HASHABLE_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    TEXT,
    st.sampled_from(["$", "v", "x", "dict"]),
    st.binary(max_size=5),
    st.complex_numbers(allow_nan=False),
    st.dates(),
    st.datetimes(timezones=st.none() | ZONES),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), st.none() | ZONES, st.sampled_from([0, 1])),
    st.timedeltas(),
    ZONES,
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 9)),
    st.sampled_from([Path("/a/b"), Path(), PurePosixPath("x"), PureWindowsPath("c:/x")]),
    st.sampled_from([*Color, *Level, *Word, Right(0), Right.READ | Right.WRITE, Loose(9)]),
    st.builds(Hashed, st.text(max_size=3)),
)  # fmt: skip
HASHABLE = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Untyped, inner, inner),
    ),
    max_leaves=4,
)
LEAVES = st.one_of(
    HASHABLE_LEAVES,
    st.sampled_from([math.nan, complex(math.nan, -0.0), Decimal("sNaN12"), Decimal("-0")]),
    st.binary(max_size=5).map(bytearray),
)
NAMES = st.text(min_size=1, max_size=4)


def containers(inner):
    """Build each kind of container around a strategy."""
    keyed = st.dictionaries(HASHABLE, inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(HASHABLE, max_size=3),
        keyed,
        keyed.map(OrderedDict),
        keyed.map(Counter),
        st.dictionaries(TEXT, inner, max_size=3),
        st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 9)),
        st.builds(Draft, text=NAMES, items=st.lists(inner, max_size=3)),
        st.dictionaries(NAMES, inner, max_size=3).map(lambda fields: Note(**fields)),
        st.builds(Wide, number=st.integers(), other=inner),
        st.builds(Slotted, st.integers(), inner, st.lists(st.integers(), max_size=2)),
        st.builds(Plain, st.floats() | st.integers(), inner),
        st.builds(Frozen, st.lists(st.sampled_from(Color)).map(tuple), st.none() | st.just("c")),
        st.builds(Box, inner),
        st.builds(Pair, st.integers(), inner),
        st.builds(Struct, st.integers(), inner=inner),
        st.builds(lambda x: Model(deep=Deep(color=Color.RED), extra=x), inner),
    )


VALUES = st.recursive(LEAVES, containers, max_leaves=8)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_what_comes_back_is_what_was_kept(value):
    """Every value of the kinds that are kept comes back equal, with the same types in all parts."""
    assert same(value, through(value))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, 2**63 - 1, -(2**63), 2**63, -(2**20000), 1.0, -0.0, 5e-324, math.nan, math.inf,
        -math.inf, "", "é\0😀", "\ud83d", "\ud83d\ude00", b"\xff", bytearray(b"a"), [], (), ((),),
        set(), frozenset({frozenset()}), {}, {"a": 1}, {"$": 1}, {"$": "tuple", "v": []}, {1: 2, "1": 3},
        {None: 0, (1, "a"): [2], b"k": 3}, {"\ud800": 1}, {"b": 1, "a": 2}, deque([1], maxlen=2),
        deque(), OrderedDict(b=1, a=2), Counter("aab"), 1j, complex(math.inf, -0.0),
        date(1, 1, 1), datetime(999, 1, 1), datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2024, 1, 1, tzinfo=UTC), time(23, 59, 59, 999999, tzinfo=timezone(timedelta(seconds=1))),
        time(1, fold=1), timedelta.min, timedelta.max, timedelta(microseconds=-1), UTC,
        timezone(timedelta(hours=2), "EET"), timezone(timedelta(0), "UTC"), ZoneInfo("Etc/GMT+5"),
        Decimal("1E+5"), Decimal("NaN"), Decimal("-sNaN7"), Decimal("Infinity"), Fraction(-(2**70), 3),
        UUID(int=0), Path("/tmp/\udcff"), Path("a b"), range(0), range(10, -(2**70), -3), Color.AZURE,
        Level.LOW, Word.YES, Right(0), ~Right.READ, Loose(1 << 80), msgspec.UNSET,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_each_type_comes_back_exactly(value):
    """Each supported type survives at its edges, alone, in a list and as a field."""
    assert same(value, through(value))
    assert same([value], through([value]))
    assert same({"k": value}, through({"k": value}))
    assert same(Note(a=value).a, through(Note(a=value)).a)


@pytest.mark.parametrize(
    "value",
    [
        Slotted(1, Slotted(2), [3]), Hashed("a"), Plain(1, inner=(1,)), Plain(1.5), Frozen((Color.RED,), None),
        Box(Box(1)), Pair(1, Pair(2)), Untyped({1}, None), Model(deep=Deep(color=Color.BLUE)), Struct(1, 2),
        Draft(text="x", items=[Note(a=Draft(text="y"))]), Note(), Note(**{"a b": 1, "$": 2, "v": 3, "\ud800": 4}),
        Wide(number=1, other=(2,)), StartEvent(topic="t"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_each_kind_of_class_comes_back_exactly(value):
    """Events, attrs classes, dataclasses, tuples, models and structs keep every field."""
    assert same(value, through(value, Codec([*KNOWN, StartEvent])))


def test_plain_data_stays_as_it_is():
    """What JSON has is written as JSON, so that snapshots can be read by others."""
    value = {"a": [1, 2.5, None, True, {"b": "c"}]}

    assert value == CODEC.encode(value, "state")


def test_a_tagged_value_names_its_class():
    """An instance is an object with the qualified name of its class and its fields."""
    expected = {TAG: "Draft", "v": {"text": "x", "items": [], "_seen": {TAG: "set", "v": []}}}

    assert expected == CODEC.encode(Draft(text="x"), "event Draft")


def test_private_fields_and_attributes_come_back():
    """Private fields, fields that no constructor takes, and attributes that were added are kept."""
    draft = Draft(text="x")
    draft._seen.add(3)
    plain = Plain(1.0)
    plain.late, plain.added = "late", (1,)
    model = Model(deep=Deep(color=Color.RED), when=date(2024, 5, 5), more=(1,))
    model._secret = b"s"

    assert {3} == through(draft)._seen
    assert (through(plain).late, through(plain).added) == ("late", (1,))
    assert (through(model)._secret, through(model).more) == (b"s", (1,))
    assert {"deep", "when", "more"} == through(model).model_fields_set


def test_a_field_that_was_never_set_stays_unset():
    """A field without a default that no constructor takes may be absent, and stays so."""
    assert not hasattr(through(Slotted(1)), "unset")
    assert not hasattr(through(Plain(1)), "late")


def test_nothing_runs_again():
    """No constructor, validator or post-init runs when a value is read."""
    counted = Counted(number=1)
    before = Counted.made

    assert before == (through(counted), Counted.made)[1]
    assert through(Plain(1.0)).runs == 1
    assert (
        date(2024, 1, 2) == through(Model(deep=Deep(color=Color.RED), when=date(2024, 1, 1))).when
    )


def test_what_is_computed_is_not_kept():
    """A cached property is computed anew, and a remembered hash is forgotten."""
    plain = Plain(1.0)
    assert plain.costly is plain.costly
    hashed, in_dict = Hashed("a"), HashedDict("a")
    hash(hashed)
    hash(in_dict)

    assert "costly" not in through(plain).__dict__
    assert hash(through(hashed)) == hash(hashed)
    assert hash(through(in_dict)) == hash(in_dict)
    assert "hash" not in json.dumps(CODEC.encode([hashed, in_dict], "v")).replace("Hashed", "")


def test_what_was_shared_becomes_two():
    """Identity is not kept: a list in two events is two equal lists afterwards."""
    shared = [1]
    one, two = through([Draft(text="a", items=shared), Draft(text="b", items=shared)])

    assert one.items == two.items == [1]
    assert one.items is not two.items


def test_the_data_shares_nothing_with_the_value():
    """Data and values can be changed without changing the other."""
    value = {"a": [1], "b": Draft(text="x", items=[2])}
    data = CODEC.encode(value, "state")
    before = copy.deepcopy(data)
    value["a"].append(2)
    value["b"].items.append(3)
    again = CODEC.decode(data, "state")
    again["a"].append(4)

    assert before == data


def test_the_context_of_decimal_does_not_matter():
    """A Decimal is kept and checked the same under any context."""
    with localcontext() as context:
        context.capitals = 0
        context.clear_traps()
        data = CODEC.encode(Decimal("1E+9"), "d")
        assert Decimal("1E+9") == CODEC.decode({TAG: "Decimal", "v": "1E+9"}, "d")
        refusal(CODEC.decode, {TAG: "Decimal", "v": "abc"}, "d")

    assert data == {TAG: "Decimal", "v": "1E+9"}


def test_an_exception_becomes_a_restored_error():
    """Of an exception the name, the message and the notes are kept; the class is not rebuilt."""
    error = KeyError("what")
    error.add_note("a note")
    restored = through(Note(error=error)).error

    assert RestoredError is type(restored)
    assert (
        restored.type_name,
        restored.message,
        restored.__notes__,
    ) == ("KeyError", "'what'", ["a note"])
    assert str(restored) == "KeyError: 'what'"
    again = through(restored)
    assert (restored.type_name, restored.message, restored.__notes__) == (
        again.type_name,
        again.message,
        again.__notes__,
    )
    assert restored.args == pickle.loads(pickle.dumps(restored)).args


class Declined(OSError):
    """An exception of a user."""


def test_a_restored_error_knows_the_classes_that_the_exception_had():
    """T11: by their qualified names, through any number of snapshots, copies and pickles."""
    once = through(Declined("no"))

    for error in (once, through(once), pickle.loads(pickle.dumps(once))):
        assert error.class_names[:2] == (f"{__name__}.Declined", "OSError")
        assert error.was_a(Declined)
        assert error.was_a(ValueError, OSError)
        assert error.was_a(BaseException)
        assert not error.was_a(ValueError, PermissionError, RestoredError)
    with pytest.raises(TypeError, match=r"was given 'OSError'; expected exception classes"):
        once.was_a("OSError")


def test_an_exception_of_a_script_is_found_in_its_module_and_the_other_way_round():
    """A worker imports the module that an earlier process ran as its main one."""
    as_main = type("Declined", (OSError,), {"__module__": "__main__", "__qualname__": "Declined"})

    assert through(as_main()).was_a(Declined)
    assert through(Declined()).was_a(as_main)
    assert not through(OSError()).was_a(as_main)
    assert not through(as_main()).was_a(ValueError)


def test_a_restored_error_of_an_older_release_knows_its_class_alone():
    """Data without the names of the bases stay readable, and are written as they were."""
    data = {TAG: "error", "v": ["Declined", "no", ["a note"]]}
    error = CODEC.decode(data, "an error")

    assert error.class_names == ()
    assert error.was_a(Declined)
    assert not error.was_a(OSError)
    assert CODEC.encode(error, "an error") == data


def test_an_exception_that_cannot_tell_its_message_is_kept():
    """A broken ``__str__`` does not keep a run from being saved; odd notes are left out."""

    class Broken(Exception):
        def __str__(self):
            raise ZeroDivisionError

    error = Broken()
    error.__notes__ = ["good", 3]
    restored = through(error)

    assert restored.type_name.endswith("Broken")
    assert "ZeroDivisionError" in restored.message
    assert restored.__notes__ == ["good"]


def test_a_restored_error_fits_the_annotation_of_the_exception():
    """A field annotated with an exception class takes what became of the exception."""

    class Failed(Event):
        error: ValueError

    codec = Codec([Failed])

    assert through(through(Failed(error=ValueError("bad")), codec), codec).error.message == "bad"


# -- which classes ------------------------------------------------------------------------------


class Alias(Event):
    count: Count
    options: Options


class Tree(Event):
    children: list[Tree]
    leaf: Annotated[Pair | None, "metadata"] = None
    deep: dict[str, tuple[Optional[Struct], ...]] = {}  # noqa: UP045
    level: Literal[Level.LOW] = Level.LOW
    call: Callable[[Hashed], Slotted] = None  # type: ignore[assignment]


class Branch(Tree):
    """A subclass, which no annotation names."""


def test_the_annotations_lead_to_the_classes():
    """``Codec.of`` finds what fields hold, through unions, containers, aliases and recursion."""
    codec = Codec.of([Tree, Alias, Box[Model]])
    value = Tree(children=[Tree(children=[])], leaf=Pair(1), deep={"a": (Struct(1), None)})

    assert same(value, through(value, codec))
    for other in (Slotted(1), Hashed("a"), Deep(color=Color.RED), Level.LOW, Box(1)):
        assert same(other, through(other, codec))


def test_a_subclass_is_known_only_when_it_is_named():
    """Subclasses of an event are not taken along; ``extra`` names them."""
    branch = Branch(children=[])

    assert "Workflow(serializable=[Branch])" in refusal(Codec.of([Tree]).encode, branch, "event")
    assert same(branch, through(branch, Codec.of([Tree], [Branch])))


def test_a_root_that_cannot_be_kept_is_left_out():
    """A root of another kind is no error; naming such a class in ``extra`` is one."""
    codec = Codec.of([Client, Draft, dict, ValueError])

    assert "is a Client" in refusal(codec.encode, Client(), "state")
    for cls in (Client, ValueError, defaultdict, threading.Thread):
        assert "cannot be kept" in refusal(Codec.of, [Draft], [cls])
        assert "expected an event" in refusal(Codec, [cls])


def test_an_abstract_class_has_no_instances():
    """A class that cannot have instances is left out by ``of`` and refused otherwise."""

    @attrs.define
    class Base(ABC):
        @abstractmethod
        def run(self): ...

    assert "cannot be kept" in refusal(Codec, [Base])
    assert repr(Codec.of([Base])) == "<Codec of 0 classes>"


def test_generic_aliases_count_by_their_class():
    """``Box[int]`` and ``Box[str]`` are one class, named once."""
    codec = Codec([Box[int], Box[str], Box])

    assert repr(codec) == "<Codec of 1 classes>"
    assert codec.encode(Box[int](1), "box") == {TAG: "Box", "v": {"content": 1}}


def named(name, module, **fields):
    """Make an event class with a given name."""
    return type(
        name, (Event,), {"__annotations__": fields, "__module__": module, "__qualname__": name}
    )


def test_classes_with_one_name_are_told_apart_by_module():
    """Two classes of one name are named with their modules, whatever their order."""
    one, two = named("Same", "json", a=int), named("Same", "decimal", b=int)
    for codec in (Codec([one, two]), Codec([two, one])):
        assert codec.encode(one(a=1), "e")[TAG] == "json:Same"
        assert codec.encode(two(b=1), "e")[TAG] == "decimal:Same"
        assert type(through(two(b=1), codec)) is two
    assert Codec([one]).encode(one(a=1), "e")[TAG] == "Same"
    assert type(Codec([one]).decode({TAG: "json:Same", "v": {"a": 1}}, "e")) is one


def test_a_class_named_like_a_tag_is_told_apart():
    """An event that is called as a built-in tag takes its module into the name."""
    mine = named("datetime", "json", a=int)
    codec = Codec([mine])

    assert type(through(mine(a=1), codec)) is mine
    assert same(datetime(2024, 1, 1), through(datetime(2024, 1, 1), codec))


def test_two_classes_of_one_module_and_name_are_refused():
    """Names must tell classes apart."""
    message = refusal(Codec, [named("Twin", "json"), named("Twin", "json")])

    assert "json:Twin" in message
    assert "expected one" in message


def test_what_cannot_be_resolved_is_not_followed():
    """A class whose annotations have unknown names is kept all the same, without checks."""
    cls = named("Odd", __name__, a="Nowhere", b="int")
    codec = Codec.of([cls])

    assert through(cls(a=1, b="text"), codec).b == "text"


# -- what is refused when it is written ---------------------------------------------------------


LIVE = {
    "lock": threading.Lock,
    "function": lambda: same,
    "lambda": lambda: lambda: None,
    "generator": lambda: (n for n in ()),
    "class": lambda: Draft,
    "module": lambda: json,
    "client": Client,
    "socket": socket.socket,
    "object": object,
}


@pytest.mark.parametrize("make", LIVE.values(), ids=LIVE)
def test_a_live_object_is_refused_with_its_path(make):
    """What cannot be kept is named by path and class, and the message says where it belongs.

    It does not advise to name the class, because that would be refused in turn.
    """
    value = make()
    message = refusal(CODEC.encode, Draft(text="x", items=[1, {"a": (value,)}]), "event Draft")
    if isinstance(value, socket.socket):
        value.close()

    assert message.startswith(
        f"event Draft.items[1]['a'][0] is a {type(value).__qualname__}, which"
    )
    assert "Workflow(serializable=[" not in message
    assert "Resource(make)" in message


def test_an_unknown_class_is_refused_with_its_path():
    """An instance of a class that could be kept says how to make the class known."""

    @attrs.define
    class Customer:
        name: str

    message = refusal(
        CODEC.encode, Note(items=deque([Plain(1.0, inner=Customer("a"))])), "event Note"
    )

    assert message.startswith("event Note.items[0].inner is a ")
    assert "Customer, a class that the workflow does not know; expected" in message
    assert message.endswith("Workflow(serializable=[Customer])")


def test_a_subclass_of_a_plain_type_is_refused():
    """A subclass of a built-in would lose its type: the message shows how to make it plain."""
    assert "expected a plain dict: dict(value)" in refusal(CODEC.encode, defaultdict(list), "state")
    assert "expected a plain str: str(value)" in refusal(
        CODEC.encode, type("S", (str,), {})("a"), "state"
    )


def test_a_key_that_cannot_be_kept_is_named():
    """The path tells a key from a value."""
    assert refusal(CODEC.encode, {1: 2, Client(): 1}, "state").startswith(
        "state.keys()[1] is a Client"
    )
    assert refusal(CODEC.encode, {1: Client()}, "state").startswith("state[1] is a Client")
    assert refusal(CODEC.encode, {(1, 2): Client()}, "state").startswith(
        "state[a tuple] is a Client"
    )


def test_a_zone_without_a_name_is_refused():
    """Zones are kept by their keys; other zones are not known."""

    class Own(tzinfo):
        pass

    with next(iter_zone_files()).open("rb") as file:
        nameless = ZoneInfo.from_file(file)

    assert "ZoneInfo(name)" in refusal(CODEC.encode, {"a": nameless}, "state")
    assert "Own" in refusal(CODEC.encode, datetime(2024, 1, 1, tzinfo=Own()), "state")


def iter_zone_files():
    """Yield the files of one zone."""
    for root in ("/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo"):
        if (Path(root) / "UTC").exists():
            yield Path(root) / "UTC"
    pytest.skip("no files of time zones")


def test_a_field_that_does_not_fit_is_refused_at_once():
    """A field that its annotation would refuse on reading is refused on writing."""
    assert (
        refusal(CODEC.encode, Draft(text=3), "event Draft")
        == "event Draft.text is 3; expected str, as the annotation says"
    )
    assert "state.items is a list; expected tuple" in refusal(CODEC.encode, Frozen([]), "state")


def test_a_field_without_a_value_is_refused():
    """An instance that lacks a field it should have is no instance to keep."""
    draft = Draft(text="x")
    del draft.__dict__["text"]

    assert (
        refusal(CODEC.encode, draft, "event Draft")
        == "event Draft lacks 'text'; expected all fields of Draft"
    )


def test_an_attribute_that_a_closed_event_does_not_declare_is_refused():
    """What could not be read is not written."""
    draft = Draft(text="x")
    draft.__dict__["other"] = 1

    assert "event Draft.other is no field of Draft" in refusal(CODEC.encode, draft, "event Draft")


CIRCLES = {
    "list": (list, lambda v: v.append(v), "state holds itself: it is state again"),
    "dict": (dict, lambda v: v.update(a=[v]), "state['a'][0] holds itself: it is state again"),
    "deque": (deque, lambda v: v.append(v), "state[0] holds itself: it is state again"),
    "event": (Note, lambda v: v.__dict__.update(a=(v,)), "state.a[0] holds itself"),
    "attrs": (lambda: Slotted(1), lambda v: setattr(v, "inner", v), "state.inner holds itself"),
}


@pytest.mark.parametrize(("make", "close", "told"), CIRCLES.values(), ids=CIRCLES)
def test_a_circle_is_refused_with_its_path(make, close, told):
    """A value that holds itself is named, and where it does; there is no RecursionError."""
    value = make()
    close(value)
    message = refusal(CODEC.encode, value, "state")

    assert told in message.replace("state[0] holds", "state holds", "list" in str(type(value)))
    assert "expected no circles" in message
    assert len(message) < 200


def nest(depth, wrap):
    """Wrap a value many times."""
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS = [
    lambda v: [v],
    lambda v: (v,),
    lambda v: {"a": v},
    lambda v: {1: v},
    lambda v: deque([v]),
    lambda v: Note(a=v),
    lambda v: Slotted(1, v),
    lambda v: Pair(1, v),
    lambda v: OrderedDict({1: v}),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_values_may_be_nested_deeply(wrap):
    """Up to 100 levels work, through the parser of JSON as well; more give a clear error."""
    value = through(nest(99, wrap))
    data = CODEC.encode(value, "state")

    assert CODEC.encode(nest(99, wrap), "state") == data
    for depth in (102, 500, 5000):
        message = refusal(CODEC.encode, nest(depth, wrap), "state")
        assert message.startswith("state")
        assert "is nested more than 100 levels deep" in message


def test_data_may_not_be_nested_without_end():
    """Data that is too deep for the stack gives a clear error."""
    data = nest(100_000, lambda v: [v])

    assert "state is nested too deeply" in refusal(CODEC.decode, data, "state")
    while data != 1:
        data = data[0]


def test_little_stack_gives_a_clear_error():
    """A codec that is called with no stack left says so."""

    def sink(depth):
        return CODEC.encode(nest(99, lambda v: [v]), "state") if depth == 0 else sink(depth - 1)

    room = sys.getrecursionlimit() - 90
    here, frame = 0, sys._getframe()
    while frame:
        here, frame = here + 1, frame.f_back

    assert "state is nested too deeply" in refusal(sink, room - here)


# -- what is refused when it is read ------------------------------------------------------------


BAD = [
    ({TAG: "Nobody", "v": {}}, "names 'Nobody', which the workflow does not know"),
    ({TAG: "Darft", "v": {}}, "did you mean 'Draft'?"),
    ({TAG: ["Draft"], "v": {}}, "names a list"),
    ({TAG: None, "v": {}}, "names None"),
    ({TAG: "os:system", "v": ["true"]}, "does not know"),
    ({TAG: "Draft", "v": {}}, "lacks 'text'; expected all fields of Draft, or a default for each new field"),
    ({TAG: "Draft"}, "in place of"),
    ({TAG: "Draft", "v": []}, "a Draft of a list in place of an object"),
    ({TAG: "Draft", "v": {"txt": "a"}}, ".txt is no field of Draft; expected its fields: text"),
    ({TAG: "Draft", "v": {"text": 3}}, ".text is 3; expected str, as the annotation says"),
    ({TAG: "Draft", "v": {"text": "a", "items": {}}}, ".items is a dict; expected list"),
    ({TAG: "Draft", "v": {"text": "a", "items": [{TAG: "date", "v": "x"}]}}, ".items[0] cannot be"),
    ({TAG: "Draft", "v": {"text": "a", "items": [], "_seen": {TAG: "set", "v": []}}, "x": {"b": 1}}, "no other attributes"),
    ({TAG: "Wide", "v": {"number": 1}, "x": {"number": 2}}, "'number'"),
    ({TAG: "Wide", "v": {"number": 1}, "x": [1]}, "'x' is a list"),
    ({TAG: "Wide", "v": {"number": 1}, "y": {}}, "'y'"),
    ({TAG: "Wide", "v": {"number": 1}, "x": {TAG: "dict", "v": [[1, 2]]}}, "'x' has the key 1"),
    ({TAG: "Wide", "v": {"number": True, 3: 4}}, ".3 is no field"),
    ({TAG: "Color", "v": "GREEN"}, "Color has no member 'GREEN'"),
    ({TAG: "Color", "v": 1}, "in place of str"),
    ({TAG: "Right", "v": 8}, "cannot be read"),
    ({TAG: "Right", "v": -1}, "cannot be read"),
    ({TAG: "Right", "v": True}, "in place of int"),
    ({TAG: "Pair", "v": {"right": 1}}, "lacks 'left'"),
    ({TAG: "Frozen", "v": {"items": {TAG: "tuple", "v": []}, "client": None}, "x": {"a": 1}}, "no other attributes"),
    ({TAG: "Struct", "v": {"number": 1.5}}, ".number is a float; expected int"),
    ({TAG: "Model", "v": {}}, "lacks 'deep'"),
    ({TAG: "Deep", "v": {"color": {TAG: "Color", "v": "RED"}}}, "lacks '__pydantic_fields_set__'"),
    ({TAG: "Deep", "v": {"color": 1, "__pydantic_fields_set__": {TAG: "set", "v": []}}}, ".color is 1; expected Color"),
    ({TAG: "Deep", "v": {"color": {TAG: "Color", "v": "RED"}, "__pydantic_fields_set__": {TAG: "set", "v": ["z"]}}}, "fields_set"),
    ({TAG: "Deep", "v": {"color": {TAG: "Color", "v": "RED"}, "__pydantic_fields_set__": {TAG: "set", "v": []}, "__pydantic_extra__": {}}}, "no extra"),
    ({TAG: "Deep", "v": {"color": {TAG: "Color", "v": "RED"}, "__pydantic_fields_set__": {TAG: "set", "v": []}, "__pydantic_private__": {"_x": 1}}}, "private"),
    ({TAG: "set", "v": [[1]]}, "TypeError: unhashable"),
    ({TAG: "set", "v": [1, 1]}, "twice"),
    ({TAG: "set", "v": "ab"}, "in place of list"),
    ({TAG: "tuple", "v": {}}, "in place of list"),
    ({TAG: "dict", "v": [[1, 2], [1, 3]]}, "the key of item 1 is there twice"),
    ({TAG: "dict", "v": [[[], 2]]}, "unhashable"),
    ({TAG: "dict", "v": [[1]]}, "item 0 is not a list of a key and a value"),
    ({TAG: "dict", "v": {}}, "in place of a list"),
    ({TAG: "deque", "v": [[1, 2], 1]}, "cannot be read"),
    ({TAG: "deque", "v": [[], -1]}, "cannot be read"),
    ({TAG: "deque", "v": [[], 10**30]}, "OverflowError"),
    ({TAG: "int", "v": "zz"}, "ValueError"),
    ({TAG: "int", "v": "ff"}, "is not how a int is written"),
    ({TAG: "float", "v": 3}, "in place of str"),
    ({TAG: "str", "v": "!"}, "cannot be read"),
    ({TAG: "bytes", "v": "é"}, "cannot be read"),
    ({TAG: "complex", "v": [1, 2]}, "in place of float, float"),
    ({TAG: "range", "v": [0, 1, 0]}, "ValueError"),
    ({TAG: "date", "v": "2024-13-01"}, "ValueError"),
    ({TAG: "date", "v": "20240101"}, "is not how a date is written"),
    ({TAG: "datetime", "v": ["2024-01-01T00:00:00", None, 2]}, "ValueError"),
    ({TAG: "datetime", "v": ["2024-01-01T00:00:00", 1, 0]}, "in place of str, NoneType or timezone"),
    ({TAG: "datetime", "v": "2024-01-01T00:00:00"}, "in place of a list"),
    ({TAG: "timedelta", "v": [10**12, 0, 0]}, "OverflowError"),
    ({TAG: "timedelta", "v": [0, 90000, 0]}, "is not how a timedelta is written"),
    ({TAG: "timezone", "v": [{TAG: "timedelta", "v": [3, 0, 0]}, "a"]}, "ValueError"),
    ({TAG: "ZoneInfo", "v": "../../etc/passwd"}, "no time zone is called"),
    ({TAG: "ZoneInfo", "v": "Europe/Nowhere"}, "cannot be read"),
    ({TAG: "ZoneInfo", "v": "Europe"}, "cannot be read"),
    ({TAG: "Decimal", "v": "1,0"}, "cannot be read"),
    ({TAG: "Fraction", "v": [1, 0]}, "ZeroDivisionError"),
    ({TAG: "Fraction", "v": [2, 4]}, "is not how a Fraction is written"),
    ({TAG: "UUID", "v": "{00000000-0000-0000-0000-000000000000}"}, "is not how"),
    ({TAG: "error", "v": ["A", "b", [1]]}, "cannot be read"),
    ({TAG: "error", "v": ["A", "b"]}, "in place of str, str, list"),
    ({TAG: "error", "v": ["A", "b", [], []]}, "are not a list of texts"),
    ({TAG: "error", "v": ["A", "b", [], [1]]}, "are not a list of texts"),
    ({TAG: "UNSET", "v": 1}, "in place of NoneType"),
    ({"a": [object()]}, "['a'][0] is a object, which JSON does not have"),
    ({"a": (1,)}, "['a'] is a tuple"),
    ({"a": {1: 2}}, "the key is 1 in place of a str"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "told"), BAD, ids=lambda value: steady_id(value)[:60])
def test_bad_data_is_refused_with_its_path(data, told):
    """Data that ``encode`` would not have made raises a SnapshotError that says where and why."""
    message = refusal(CODEC.decode, [0, data], "event Draft")

    assert message.startswith("event Draft[1]")
    assert told in message
    assert "expected" in message


def test_the_error_is_of_the_tree():
    """P19: bad input raises one error, which people catch as a WorkflowRuntimeError."""
    assert issubclass(SnapshotError, WorkflowRuntimeError)


def test_nothing_is_imported_by_name(monkeypatch):
    """P19: a name in the data is never imported, and a class that is not known never comes out."""
    monkeypatch.delitem(sys.modules, "this", raising=False)
    for name in (
        "this",
        "this:s",
        "this.s",
        "builtins:object",
        "sluicegate._events:Event",
        "Event",
    ):
        assert "does not know" in refusal(CODEC.decode, {TAG: name, "v": {}}, "event")
    assert "this" not in sys.modules


def test_a_hash_that_refuses_is_told():
    """What a user's ``__hash__`` raises is a SnapshotError."""

    class Sour(msgspec.Struct):
        def __hash__(self):
            raise RuntimeError("no hash")

    codec = Codec([Sour])
    data = {TAG: "set", "v": [codec.encode(Sour(), "s")]}
    with pytest.raises(SnapshotError, match="RuntimeError: no hash") as caught:
        codec.decode(data, "s")

    assert RuntimeError is type(caught.value.__cause__)


class Anything(Protocol):
    def run(self): ...


class Checked(Event):
    a: int | None = 0
    b: Sequence[int] = ()
    c: Mapping[str, int] = {}
    d: Literal["x", 1] = 1
    e: Optional[float] = None  # noqa: UP045
    f: Annotated[date, "m"] = date(2024, 1, 1)
    g: Any = None
    h: Anything = None  # type: ignore[assignment]
    i: Options = None  # type: ignore[assignment]
    j: Count = 0  # type: ignore[assignment]
    k: complex = 0
    o: T = None  # type: ignore[valid-type]
    m: list[int] = []


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("a", None, True), ("a", True, True), ("a", 1.0, False), ("a", "1", False), ("b", [1], True),
        ("b", (1,), True), ("b", 3, False), ("c", {}, True), ("c", [], False), ("d", "x", True),
        ("d", None, False), ("e", 3, True), ("e", None, True), ("e", "3", False), ("f", datetime(2024, 1, 1), True),
        ("f", "2024-01-01", False), ("g", object, None), ("g", [1], True), ("h", 3, True), ("i", {}, True),
        ("i", None, True), ("i", [], False), ("j", 3, True), ("j", "3", False), ("k", 3, True), ("k", 1j, True),
        ("k", "1", False), ("o", "x", True), ("m", ["not", "checked"], True),
    ],
)  # fmt: skip
def test_fields_are_checked_by_class(name, value, fits):
    """A field is checked against the class in its annotation, both ways; inside containers not."""
    codec = Codec([Checked])
    event = Checked(**{name: value})
    if not fits:
        assert refusal(codec.encode, event, "e").startswith(f"e.{name} is ")
        return

    assert same(event, through(event, codec))


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES, st.data())
def test_damaged_data_never_raises_anything_else(value, data):
    """Whatever is changed in a document, decoding it gives a value or a SnapshotError."""
    document = [CODEC.encode(value, "value")]
    for _ in range(data.draw(st.integers(1, 3))):
        damage(document, data)
    made = outcome = None
    try:
        made = CODEC.decode(document, "value")
    except SnapshotError as error:
        outcome = str(error)
    if outcome is not None:
        assert outcome.startswith("value")
        return

    CODEC.decode(CODEC.encode(made, "again"), "again")


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.integers(), TEXT,
    st.sampled_from([[], {}, [[]], [1, 2], {TAG: "set", "v": []}, {TAG: "Draft"}, {"v": 1}, object(), (), b"x", {1: 2}]),
    st.sampled_from(sorted(CODEC._decoders)),
    st.sampled_from(sorted(CODEC._decoders)).flatmap(
        lambda tag: st.sampled_from([None, "", 0, [], {}, [0, 0, 0], ["", "", []], [[], []]]).map(
            lambda content: {TAG: tag, "v": content}
        )
    ),
)  # fmt: skip


def places(data):
    """Yield each container in a document with each of its keys."""
    if isinstance(data, (dict, list)):
        keys = list(data) if isinstance(data, dict) else range(len(data))
        for key in keys:
            yield data, key
            yield from places(data[key])


def damage(document, data):
    """Change one place of a document."""
    found = list(places(document))
    assume(found)
    holder, key = data.draw(st.sampled_from(found))
    what = data.draw(st.sampled_from(["replace", "replace", "remove", "add", "swap"]))
    if what == "remove":
        del holder[key]
    elif what == "swap":
        other, name = data.draw(st.sampled_from(found))
        holder[key] = copy.deepcopy(other[name]) if name in places_of(other) else None
    elif what == "add" and isinstance(holder, dict):
        holder[data.draw(st.sampled_from(["v", "x", TAG, "text", "", "number"]))] = copy.deepcopy(
            data.draw(JUNK)
        )
    else:
        holder[key] = copy.deepcopy(data.draw(JUNK))


def places_of(holder):
    """Return the keys that a container has."""
    return holder if isinstance(holder, dict) else range(len(holder))


# -- elsewhere ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_document_is_read_in_another_process():
    """The same set of classes reads in another process what this one wrote."""
    value = [
        Draft(text="x", items=[Color.RED, {1: (2,)}, Hashed("a"), {Hashed("b")}]),
        Note(when=datetime(2024, 1, 1, tzinfo=UTC)),
        Model(deep=Deep(color=Color.BLUE), other=Struct(1)),
    ]
    document = CODEC.encode(value, "value")
    code = (
        "import json, sys\n"
        "from tests.test_codec import CODEC\n"
        "value = CODEC.decode(json.load(sys.stdin), 'value')\n"
        "print(value[0].text, hash(value[0].items[2]) == hash(type(value[0].items[2])('a')))\n"
        "print(json.dumps(CODEC.encode(value, 'value')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    told, _, again = done.stdout.partition("\n")

    assert told == "x True"
    assert document == json.loads(again)


def test_threads_may_share_a_codec():
    """A codec keeps nothing of a call."""
    value = Draft(text="x", items=[{1: (n,)} for n in range(50)])
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(CODEC.decode(CODEC.encode(value, "a"), "a")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [same(value, result) for result in results] == [True] * 4
