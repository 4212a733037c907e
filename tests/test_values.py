"""Values in states and snapshots: written, restored and decoded are three things, never mixed.

Decoding (from outside) runs all that a class has. A write checks what has changed against the
annotations' classes. A restore runs nothing of the user's but the default factories of new fields.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import inspect
import ipaddress
import json
import re
import sys
import types
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TextIO, TypeVar

import anyio
import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from pydantic import (
    AfterValidator,
    AwareDatetime,
    Base64Str,
    ByteSize,
    ConfigDict,
    Field,
    FutureDatetime,
    HttpUrl,
    IPvAnyAddress,
    Json,
    NaiveDatetime,
    NewPath,
    PastDate,
    PlainValidator,
    PostgresDsn,
    SecretStr,
    WrapValidator,
)
from typing_extensions import TypedDict

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    SnapshotError,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowValidationError,
    decode_event,
    step,
)
from sluicegate._data.codec import TAG, Codec
from sluicegate._state.drafts import DictState
from sluicegate._state.store import StateStore
from tests.helpers import on_each_backend, run_virtually, through_json


#: The functions of users' classes that have been called.
called: list[str] = []


def noted(name: str, function: Any = lambda value: value) -> Any:
    """Return a function that notes when it is called."""

    def run(value: Any, *_: Any) -> Any:
        called.append(name)
        return function(value)

    return run


# -- three operations -------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Careful(pydantic.BaseModel):
    """Everything by which pydantic lets a class run code of its own."""

    model_config = ConfigDict(use_enum_values=True, extra="allow")
    count: int = 0
    price: Annotated[int, AfterValidator(noted("after", lambda v: v * 100))] = 0
    words: Annotated[str, AfterValidator(lambda v: v.split(","))] = ""
    wrapped: Annotated[int, WrapValidator(lambda v, call: call(v) + 1)] = 0
    plain: Annotated[int, PlainValidator(lambda v: f"<{v}>")] = 0
    password: str = ""
    encoded: Base64Str = ""
    numbers: Json[list[int]] = []
    path: NewPath | None = None
    fixed: int = Field(default=1, frozen=True)
    color: Color = Color.RED
    unvalidated: tuple[int, ...] = Field(default_factory=list)
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)

    @pydantic.field_validator("password")
    @classmethod
    def _hash(cls, value: str) -> str:
        called.append("hash")
        return f"#{value}#"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Careful:
        called.append("model")
        return self

    @pydantic.computed_field
    @property
    def doubled(self) -> int:
        return self.count * 2


@attrs.define
class Converted:
    """Converters and validators of attrs, and a field that nothing sets."""

    count: int = 0
    price: int = attrs.field(default=0, converter=noted("converter", lambda v: v * 100))
    words: list[str] = attrs.field(
        factory=list, converter=tuple, validator=attrs.validators.instance_of(tuple)
    )
    late: int = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        called.append("post")


@dataclasses.dataclass
class Posted:
    """A dataclass that changes its fields, and has one that nothing sets."""

    count: int = 0
    price: int = 0
    late: str = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        called.append("post")
        self.price *= 100


@pydantic.dataclasses.dataclass
class Validated:
    """A dataclass of pydantic."""

    count: int = 0
    price: Annotated[int, AfterValidator(noted("after", lambda v: v * 100))] = 0
    when: AwareDatetime | None = None


def careful(path: Path) -> Careful:
    made = Careful(
        price=5, words="a,b", wrapped=1, plain=7, password="x", encoded="aGk=", color="blue",
        numbers="[1, 2]", path=path, more=dt.date(2024, 1, 1),
    )  # fmt: skip
    made._seen.append(3)
    return made


KINDS: list[Any] = [
    (Careful, careful),
    (Converted, lambda _: Converted(price=5, words=["a"])),
    (Posted, lambda _: Posted(price=5)),
    (Validated, lambda _: Validated(price=5, when=dt.datetime(2024, 1, 1, tzinfo=dt.UTC))),
]
each_kind = pytest.mark.parametrize(
    ("kind", "make"), KINDS, ids=lambda v: getattr(v, "__name__", "")
)


def keeper(kind: Any) -> type[Workflow]:
    """Return a workflow with a state of a class, that waits in its middle."""

    class Keeper(Workflow):
        @step
        async def only(self, ctx: Context[kind], ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=ctx.store.snapshot_state())

    return Keeper


@on_each_backend
@each_kind
def test_no_function_of_a_class_runs_in_a_write_or_a_restore(backend, kind, make, tmp_path):
    """An instance is kept as it is; a write, a snapshot and a restore call nothing of its class."""
    path = tmp_path / "new"

    async def main() -> None:
        workflow = keeper(kind)()
        async with workflow.run() as handler:
            await anyio.sleep(0.5)
            store, state = handler.ctx.store, make(path)
            called.clear()
            await store.set_state(state)

            assert store.snapshot_state() is state

            await store.set("count", 1)
            async with store.edit_state() as draft:
                draft.count += 1
            kept = store.snapshot_state()
            path.write_text("it is there by now")
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        restored = await workflow.resume(snapshot)

        assert called == []
        assert type(restored) is kind
        assert restored == kept
        assert kept.price == 500
        assert kept.count == 2
        assert getattr(restored, "late", "unset") == "unset"

    run_virtually(backend, main)


@on_each_backend
@each_kind
def test_a_state_goes_through_any_number_of_snapshots(backend, kind, make, tmp_path):
    """What can be written can be read, and written again: the data stays the same."""

    async def main() -> None:
        workflow = keeper(kind)()
        context = Context(workflow)
        await context.store.set_state(make(tmp_path / "new"))
        saved = [through_json(context.to_dict())]
        for _ in range(3):
            again = Context.from_dict(workflow, saved[-1])
            await again.store.set_state(again.store.snapshot_state())
            async with again.store.edit_state() as draft:
                vars(draft) if hasattr(draft, "__dict__") else None
            saved.append(through_json(again.to_dict()))

        assert saved == saved[:1] * 4

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_only_changed_fields_are_checked():
    """A field that the class itself made unfit stands in no one's way; it may be looked at."""

    @attrs.define
    class Odd:
        count: int = 0
        items: list[int] = attrs.Factory(lambda: ["not", "a", "number"])

    store = StateStore(Odd)
    await store.set("count", 1)
    async with store.edit_state() as state:
        state.count += len(state.items)
    with pytest.raises(TypeError, match=r"Odd\.count would be 'x', which is not int"):
        await store.set("count", "x")

    assert store.snapshot_state() == Odd(4)


@pytest.mark.anyio
async def test_values_that_the_class_makes_may_be_edited():
    """A value of the class that a validator made is as good as one that the annotation says."""
    store = StateStore(Careful)
    await store.set_state(Careful(words="a,b", color="blue"))
    async with store.edit_state() as state:
        state.words.append("c")
        state.color = "red"
    await store.set("words.0", "z")
    with pytest.raises(TypeError, match=r"Careful\.price would be 'many', which is not int"):
        await store.set("price", "many")

    assert store.snapshot_state().words == ["z", "b", "c"]


class Strict(pydantic.BaseModel):
    """A class that runs its validators at each assignment."""

    model_config = ConfigDict(validate_assignment=True)
    price: Annotated[int, AfterValidator(noted("after", lambda v: v * 100)), Field(gt=0)] = 1
    words: Annotated[str, AfterValidator(lambda v: v.split(","))] = ""
    count: int = 0


@pytest.mark.anyio
async def test_constraints_run_where_the_class_runs_them():
    """A class that validates assignments does so, once, in a block and by ``set``; others do not."""
    called.clear()
    store = StateStore(Strict)
    await store.set("price", 2)
    async with store.edit_state() as state:
        state.price = 3
        state.words = "a,b"
    with pytest.raises(ValueError, match="greater than 0"):
        await store.set("price", -1)

    assert (store.snapshot_state().price, store.snapshot_state().words) == (300, ["a", "b"])
    assert called == ["after"] * 3

    loose = StateStore(Careful)
    await loose.set("price", -1)
    assert await loose.get("price") == -1


@pytest.mark.anyio
async def test_the_core_types_of_pydantic_convert_without_functions():
    """Text becomes a number or a date where a field of a model is of such a type."""

    class Core(pydantic.BaseModel):
        count: Annotated[int, Field(gt=0)] = 1
        dates: list[dt.date] = []
        inner: Careful | None = None

    store = StateStore(Core)
    await store.set("count", "-5")
    await store.set("dates", ["2024-01-01"])
    called.clear()
    with pytest.raises(TypeError, match=r"Core\.inner would be {}, which is not"):
        await store.set("inner", {})

    assert store.snapshot_state() == Core.model_construct(count=-5, dates=[dt.date(2024, 1, 1)])
    assert called == []


@pytest.mark.anyio
async def test_what_a_model_holds_beside_its_fields_is_undone():
    """Private attributes and extra fields are copied for a block, also in models within models."""

    class Outer(pydantic.BaseModel):
        inner: Careful = Field(default_factory=Careful)
        _own: dict[str, list[int]] = pydantic.PrivateAttr(default_factory=lambda: {"a": []})

    store = StateStore(Outer, Outer(inner=Careful(more=[1])))
    with pytest.raises(LookupError):
        async with store.edit_state() as state:
            state._own["a"].append(1)
            state.inner._seen.append(1)
            state.inner.more.append(2)
            state.inner.other = 3
            raise LookupError
    kept = store.snapshot_state()

    assert (kept._own, kept.inner._seen, kept.inner.model_extra) == ({"a": []}, [], {"more": [1]})

    async with store.edit_state() as state:
        state._own["a"].append(1)
        state.inner._seen.append(1)
        state.inner.more.append(2)
    made = store.snapshot_state()
    assert (made._own, made.inner._seen, made.inner.more) == ({"a": [1]}, [1], [1, 2])
    assert (kept._own, kept.inner._seen, kept.inner.more) == ({"a": []}, [], [1])


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (attrs.make_class("Frozen", {"n": attrs.field(default=0)}, frozen=True), "attrs.evolve("),
        (dataclasses.make_dataclass("Fixed", [("n", int, 0)], frozen=True), "dataclasses.replace("),
        (pydantic.create_model("Firm", n=(int, 0), __config__={"frozen": True}), ".model_copy("),
    ],
)
def test_the_advice_for_a_frozen_state_is_that_of_its_class(kind, call):
    """The error shows the call that makes a changed copy of such an object."""
    with pytest.raises(TypeError, match=re.escape(call)):
        StateStore(kind).edit_state()


@on_each_backend
@each_kind
@pytest.mark.parametrize("value", ["many", [1], None, {TAG: "set", "v": []}])
def test_what_was_damaged_is_refused(backend, kind, make, value, tmp_path):
    """A restore checks each field against the classes in its annotation, validator or not."""

    async def main() -> None:
        workflow = keeper(kind)()
        context = Context(workflow)
        await context.store.set_state(make(tmp_path / "new"))
        for name in ("price", "count"):
            snapshot = through_json(context.to_dict())
            snapshot["state"]["v"][name] = value
            with pytest.raises(SnapshotError, match=rf"the state\.{name} is .*; expected int"):
                Context.from_dict(workflow, snapshot)

    run_virtually(backend, main)


def test_items_of_containers_are_checked_when_they_are_read():
    """A list of numbers is refused where the annotation says text, in a state and in an event."""

    class Tagged(Event):
        tags: list[str] = []
        mode: Literal["a", "b"] = "a"

    codec = Codec([Tagged])
    data = codec.encode(Tagged(tags=["x"]), "e")
    for name, value in (("tags", ["x", 1]), ("mode", "c")):
        damaged = {**data, "v": {**data["v"], name: value}}
        with pytest.raises(SnapshotError, match=rf"e\.{name} is .*; expected "):
            codec.decode(damaged, "e")

    # What the program itself has made so is kept.
    odd = Tagged(tags=[1])
    assert codec.decode(through_json(codec.encode(odd, "e")), "e").tags == [1]


class Checked(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        called.append("post")
        self.number += 1


class Frozenly(msgspec.Struct, frozen=True, kw_only=True, tag="f"):
    a: int
    b: list[int] = []

    def __post_init__(self) -> None:
        called.append("post")

    def __init_subclass__(cls, **options: Any) -> None:
        called.append("subclass")


class Tricky(enum.Flag):
    ONE = 1
    TWO = 2

    @classmethod
    def _missing_(cls, value: object) -> Any:
        called.append("missing")
        return super()._missing_(value)


@pytest.mark.parametrize(
    "value", [Checked(1), Frozenly(a=1, b=[2]), Tricky.ONE | Tricky.TWO], ids=lambda v: str(type(v))
)
def test_nothing_runs_when_other_objects_are_read(value):
    """A ``__post_init__`` of a struct and the ``_missing_`` of a flag are users' functions too."""
    codec = Codec([type(value)])
    data = through_json(codec.encode(value, "v"))
    called.clear()
    made = codec.decode(data, "v")

    assert made == value
    assert type(made) is type(value)
    assert called == []


# -- ordinary values of pydantic --------------------------------------------------------------------


T = TypeVar("T")


class Options(TypedDict, total=False):
    """A dictionary with names."""

    when: AwareDatetime


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


class Box(pydantic.BaseModel, Generic[T]):
    content: T


class Tree(pydantic.BaseModel):
    children: list[Tree] = []
    pet: Cat | Dog | None = Field(default=None, discriminator="kind")


class Wide(pydantic.BaseModel):
    """One field for each kind of value that pydantic makes."""

    model_config = ConfigDict(use_enum_values=True, populate_by_name=True)
    created: dt.datetime | None = None
    at: dt.time | None = None
    aware: AwareDatetime | None = None
    naive: NaiveDatetime | None = None
    past: PastDate | None = None
    future: FutureDatetime | None = None
    many: list[AwareDatetime] = []
    address: IPvAnyAddress | None = None
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    interface: ipaddress.IPv6Interface | None = None
    color: Color = Color.RED
    colors: dict[Color, set[Color]] = {}
    words: Annotated[str, AfterValidator(lambda v: tuple(v.split()))] = ""
    number: int = "not a number"
    url: HttpUrl | None = None
    urls: tuple[HttpUrl, ...] = ()
    dsn: PostgresDsn | None = None
    size: ByteSize = 0
    pattern: re.Pattern[str] | None = None
    raw: re.Pattern[bytes] | None = None
    named: int = Field(default=0, alias="another")
    box: Box[list[int]] | None = None
    root: pydantic.RootModel[dict[str, int]] | None = None
    tree: Tree | None = None
    options: Options = {}
    point: Point | None = None
    posted: Validated | None = None
    anything: Any = None


VALUES: dict[str, Any] = {
    "created": "2024-01-01T00:00:00Z", "at": "01:00:00+02:00", "aware": "2024-01-01T00:00:00-05:30",
    "naive": "2024-01-01T00:00:00", "past": "2024-01-01", "future": "2999-01-01T00:00:00Z",
    "many": ["2024-01-01T00:00:00Z"], "address": "::1", "network": "10.0.0.0/8", "interface": "::1/64",
    "color": "blue", "colors": {"blue": ["red"]}, "words": "a b", "url": "https://example.com",
    "urls": ["http://a", "http://b?c"], "dsn": "postgres://u:p@h1:1,h2:2/db", "size": "1.5MB",
    "pattern": "a+", "raw": "a+", "another": 3, "box": {"content": [1]}, "root": {"a": 1},
    "tree": {"children": [{"pet": {"kind": "dog"}}]}, "options": {"when": "2024-01-01T00:00:00Z"},
    "point": [1, 2.5], "posted": {"price": 1, "when": "2024-01-01T00:00:00Z"},
}  # fmt: skip


def made_of(values: dict[str, Any]) -> Wide:
    """Return a model of JSON; it has no way to say that a pattern is one of bytes."""
    plain = {name: value for name, value in values.items() if name != "raw"}
    made = Wide.model_validate_json(json.dumps(plain))
    if "raw" in values:
        made.raw = Wide(raw=re.compile(b"a+")).raw
    return made


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal and of the same types."""
    if isinstance(a, pydantic.BaseModel):
        return type(a) is type(b) and same(a.__dict__, b.__dict__)
    if isinstance(a, dict):
        return type(a) is type(b) and same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dt.datetime | dt.time) and not same(a.tzinfo, b.tzinfo):
        return False
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("name", VALUES)
def test_what_pydantic_makes_is_kept(name):
    """The annotation of a field is not the class of its values: each comes back as it was."""
    value = made_of({name: VALUES[name]})
    codec = Codec.of([Wide])
    made = codec.decode(through_json(codec.encode(value, "v")), "v")

    assert same(made, value)
    assert made.model_fields_set == value.model_fields_set
    again = Wide.model_construct(anything=[getattr(value, n) for n in Wide.model_fields])
    assert same(codec.decode(through_json(codec.encode(again, "v")), "v"), again)


def test_other_values_of_pydantic_are_kept():
    """What no validator makes of text: an address with a name, an URL whose path is empty."""
    values = [
        pydantic.NameEmail(name="Ann", email="ann@example.com"),
        Wide.model_construct(size="anything", number=None),
        pydantic.networks.AnyUrl("data:text/plain,hi"),
        re.compile("a", re.IGNORECASE | re.VERBOSE),
        types.MappingProxyType({"a": (1,)}),
        ipaddress.ip_address("fe80::1%eth0"),
    ]
    codec = Codec.of([Wide])

    assert same(codec.decode(through_json(codec.encode(values, "v")), "v"), values)


def test_values_are_kept_without_a_class_that_leads_to_them():
    """In a state that declares nothing, and in an event with open fields, they are kept as well."""

    class Loose(Event):
        pass

    value = made_of(VALUES)
    fields = {n: getattr(value, n) for n in ("created", "url", "dsn", "size", "address", "raw")}
    codec = Codec([Loose])
    made = codec.decode(through_json(codec.encode(Loose(**fields), "v")), "v")

    assert same(made.to_dict(), fields)


def test_annotations_of_pydantic_hold_for_events_and_other_classes():
    """An event, an attrs class or a dataclass may be annotated with them."""

    class Got(Event):
        when: AwareDatetime
        address: IPvAnyAddress
        mail: pydantic.EmailStr = ""

    @dataclasses.dataclass
    class Held:
        when: PastDate
        urls: list[HttpUrl]

    day, url = dt.date(2024, 1, 1), HttpUrl("https://example.com")
    codec = Codec([Got, Held])
    values = [
        Got(when=dt.datetime(2024, 1, 1, tzinfo=dt.UTC), address=ipaddress.ip_address("::1")),
        Held(day, [url]),
    ]

    made = codec.decode(through_json(codec.encode(values, "v")), "v")
    assert (made[0].to_dict(), made[1]) == (values[0].to_dict(), values[1])
    with pytest.raises(SnapshotError, match=r"when is a date; expected datetime"):
        codec.encode(Got(when=day, address=ipaddress.ip_address("::1")), "v")


class Login(pydantic.BaseModel):
    password: SecretStr = SecretStr("")


@on_each_backend
def test_a_secret_is_kept_only_where_it_is_named(backend):
    """A snapshot holds plain text: that a field is annotated with a secret is not enough."""

    async def main() -> None:
        kind = keeper(Login)
        context = Context(kind())
        await context.store.set_state(Login(password="hidden"))
        with pytest.raises(SnapshotError) as caught:
            context.to_dict()

        assert "the state.password is a SecretStr, which is kept only where it is named" in str(
            caught.value
        )
        assert "Workflow(serializable=[SecretStr])" in str(caught.value)
        assert "hidden" not in str(caught.value)

        workflow = kind(serializable=[SecretStr])
        context = Context(workflow)
        await context.store.set_state(Login(password="hidden"))
        again = Context.from_dict(workflow, through_json(context.to_dict()))
        password = again.store.snapshot_state().password
        assert (type(password), password.get_secret_value()) == (SecretStr, "hidden")

    run_virtually(backend, main)


def test_every_secret_is_a_secret():
    """Other classes of secrets, and classes derived from them, are kept where they are named."""

    class Salary(pydantic.Secret[dt.date]):
        pass

    values = [
        pydantic.SecretBytes(b"x"),
        pydantic.Secret[int](5),
        Salary(dt.date(2024, 1, 1)),
    ]
    for value in values:
        with pytest.raises(SnapshotError, match="only where it is named"):
            Codec([]).encode(value, "v")
        codec = Codec([type(value)])
        made = codec.decode(through_json(codec.encode(value, "v")), "v")

        assert type(made) is type(value)
        assert made.get_secret_value() == value.get_secret_value()


# -- which classes ----------------------------------------------------------------------------------


class Live:
    """A class that says nothing of its fields."""


class Own(dt.tzinfo):
    """A zone that says nothing of its fields."""


@pytest.mark.parametrize("kind", [Live, Own, ValueError, dict[str, Live], types.FunctionType])
def test_a_class_that_cannot_be_kept_is_a_fault_of_the_workflow(kind):
    """What ``serializable`` names and cannot be kept is reported when the workflow is built."""
    if kind == dict[str, Live]:
        assert keeper(Careful)(serializable=[kind])
        return
    with pytest.raises(WorkflowValidationError, match=rf"{kind.__name__} cannot be kept"):
        keeper(Careful)(serializable=[kind])


def test_two_classes_of_one_name_are_a_fault_of_the_workflow():
    """Their instances could not be told apart in a snapshot."""

    def make() -> type:
        return attrs.make_class("Twin", {"n": attrs.field(default=0)})

    one, two = make(), make()
    with pytest.raises(WorkflowValidationError, match="two different classes are"):
        keeper(Careful)(serializable=[one, two])


ADVICE: list[Any] = [
    Live(), Own(), lambda: None, types.MappingProxyType({"a": Live()}), memoryview(b"a"),
    type("Text", (str,), {})("a"), type("Day", (dt.date,), {})(2024, 1, 1), range, iter([]),
    type("Moment", (dt.datetime,), {})(2024, 1, 1), type("Row", (tuple,), {})((1,)), attrs.make_class("Known", [])(), dt.datetime(2024, 1, 1, tzinfo=Own()),
]  # fmt: skip


@pytest.mark.parametrize("value", ADVICE, ids=lambda value: type(value).__name__)
def test_advice_is_not_refused_in_turn(value):
    """A class is to be named in ``serializable`` only where that works; and then it does."""
    with pytest.raises(SnapshotError) as caught:
        Codec([]).encode({"v": value}, "state")
    advised = re.search(r"serializable=\[(\w+)\]", str(caught.value))
    if advised is None:
        return
    assert advised[1] == type(value).__name__
    Codec([type(value)]).encode({"v": value}, "state")


def test_a_class_that_was_defined_twice_is_told():
    """A module that was loaded again has other classes: to name them would be refused."""

    def make() -> Any:
        return attrs.make_class("Twin", {"n": attrs.field(default=0)})

    old, new = make(), make()
    with pytest.raises(SnapshotError, match="was defined twice") as caught:
        Codec([new]).encode(old(), "state")

    assert "serializable" not in str(caught.value)


class Reply(Event):
    number: int


class Question(InputRequiredEvent):
    text: str


class Patient(Workflow):
    """The source of its step does not show what it waits for."""

    kinds: ClassVar = {True: HumanResponseEvent, False: Reply}

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        asked = Question(text="?") if ev.asks else None
        found = await ctx.wait_for_event(self.kinds[ev.known], asked)
        return StopEvent(result=found.number)


@on_each_backend
@pytest.mark.parametrize("asks", [True, False])
def test_the_class_of_an_answer_is_told_with_the_first_snapshot(backend, asks):
    """Not only when the answer has come: the program that saves while it waits is told at once."""

    async def main() -> None:
        for workflow in (Patient(), Patient(serializable=[Question])):
            async with workflow.run(asks=asks, known=False) as handler:
                await anyio.sleep(1)
                with pytest.raises(SnapshotError, match=r"waits for Reply, a class .*\[Reply\]"):
                    handler.snapshot()
                handler.cancel()
        for options, known in (({"serializable": [Reply, Question]}, False), ({}, True)):
            async with Patient(**options).run(asks=False, known=known) as handler:
                await anyio.sleep(1)
                handler.snapshot()
                handler.cancel()

    run_virtually(backend, main)


# -- classes that have changed since ----------------------------------------------------------------


def made_later(kind: str, name: str, fields: dict[str, Any]) -> Any:
    """Return a class of a kind with some fields: name -> (annotation, default or ``...``)."""
    space: dict[str, Any] = {n: default for n, (_, default) in fields.items() if default is not ...}
    space |= {
        "__annotations__": {n: hint for n, (hint, _) in fields.items()},
        "__module__": __name__,
    }
    bases: dict[str, tuple[type, ...]] = {
        "event": (Event,),
        "model": (pydantic.BaseModel,),
        "struct": (msgspec.Struct,),
        "tuple": (),
    }
    if kind == "tuple":
        kinds = [(n, hint) for n, (hint, _) in fields.items()]
        made: Any = NamedTuple(name, kinds)
        given = tuple(default for _, default in fields.values() if default is not ...)
        made.__new__.__defaults__ = given
        made._field_defaults = dict(zip(reversed(made._fields), reversed(given), strict=False))
        return made
    made = type(bases.get(kind, (object,))[0])(name, bases.get(kind, ()), space)
    if kind == "attrs":
        return attrs.define(made)
    if kind == "dataclass":
        return dataclasses.dataclass(made)
    if kind == "pydantic dataclass":
        return pydantic.dataclasses.dataclass(made)
    return made


FORMS = ["event", "attrs", "dataclass", "pydantic dataclass", "model", "struct", "tuple"]
each_form = pytest.mark.parametrize("kind", FORMS)


@each_form
def test_a_new_field_takes_its_default(kind):
    """A field with a default may be added to a class; without one, the error says what is lacking."""
    old = made_later(kind, "Thing", {"a": (int, ...)})
    new = made_later(kind, "Thing", {"a": (int, ...), "b": (str, "new"), "c": (int | None, None)})
    worse = made_later(kind, "Thing", {"a": (int, ...), "b": (str, ...)})
    data = through_json(Codec([old]).encode([old(a=1)], "v"))
    made = Codec([new]).decode(data, "v")[0]

    assert repr(made) == repr(new(a=1))
    again = Codec([new]).decode(through_json(Codec([new]).encode(made, "v")), "v")
    assert repr(again) == repr(made)
    with pytest.raises(SnapshotError, match=r"v\[0\] .*'b'"):
        Codec([worse]).decode(data, "v")


@each_form
def test_a_removed_field_is_an_error_that_names_it(kind):
    """A value without a place is refused, or left out where that is asked for."""
    old = made_later(kind, "Thing", {"a": (int, ...), "b": (str, "old")})
    new = made_later(kind, "Thing", {"a": (int, ...)})
    data = through_json(Codec([old]).encode([old(a=1)], "v"))
    with pytest.raises(SnapshotError, match=r"v\[0\]\.b is no field of Thing") as caught:
        Codec([new]).decode(data, "v")

    assert "resume(snapshot, drop_removed_fields=True)" in str(caught.value)
    data = json.loads(json.dumps(data).replace('"old"', '{"$": "Gone", "v": {}}'))
    assert repr(Codec([new], drops_removed=True).decode(data, "v")) == repr([new(a=1)])


def test_default_factories_of_new_fields_run_once_for_each_object():
    """They run in the order of the fields, and may look at what is there; nothing else runs."""

    @attrs.define
    class Old:
        a: int

    @attrs.define
    class New:
        a: int = attrs.field(converter=noted("converter"))
        b: list[int] = attrs.field(factory=list)
        c: int = attrs.field(default=attrs.Factory(lambda self: self.a + 1, takes_self=True))
        d: Path = attrs.field(default="x", converter=Path)
        e: int = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            called.append("post")

    class NewModel(pydantic.BaseModel):
        a: int
        b: list[int] = []
        c: int = Field(default_factory=lambda: 2)
        d: Annotated[int, AfterValidator(noted("after"))] = Field(
            default="5", validate_default=True
        )
        _seen: list[int] = pydantic.PrivateAttr(default_factory=list)

    class OldModel(pydantic.BaseModel):
        a: int

    for old, new in ((Old, New), (OldModel, NewModel)):
        new.__qualname__ = old.__qualname__
        called.clear()
        data = Codec([old]).encode([old(a=1), old(a=2)], "v")
        one, two = Codec([new]).decode(through_json(data), "v")

        assert called == []
        assert (one.a, one.b, one.c, two.a) == (1, [], 2, 2)
        assert one.b is not two.b
        assert two.c == (3 if new is New else 2)
    assert (one.d, one._seen, one.model_fields_set) == (5, [], {"a"})


def test_a_default_factory_of_pydantic_may_look_at_the_fields_before_it():
    """Where pydantic has such factories, they get what they get from it."""

    class Thing(pydantic.BaseModel):
        a: int = 1
        b: int = Field(default_factory=lambda values: values["a"] + 1)

    if not hasattr(Thing.model_fields["b"], "default_factory_takes_validated_data"):
        pytest.skip("this pydantic has no such factories")
    codec = Codec([Thing])
    data = codec.encode(Thing(a=5), "v")
    del data["v"]["b"]

    assert codec.decode(data, "v").b == 6


def test_a_default_factory_that_fails_is_told():
    """The error names the place, and the exception is its cause."""

    @attrs.define
    class Old:
        a: int = 0

    @attrs.define
    class New:
        a: int = 0
        b: int = attrs.Factory(lambda: 1 // 0)

    New.__qualname__ = Old.__qualname__
    with pytest.raises(SnapshotError, match=r"v\[0\] .*ZeroDivisionError") as caught:
        Codec([New]).decode(Codec([Old]).encode([Old()], "v"), "v")

    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_a_model_holds_beside_its_fields_follows_its_class():
    """Extra fields that are fields by now, private attributes that are new or gone."""

    class Old(pydantic.BaseModel, extra="allow"):
        _gone: int = pydantic.PrivateAttr(default=1)
        _stays: int = pydantic.PrivateAttr(default=2)

    class New(pydantic.BaseModel, extra="allow"):
        named: int = 0
        _stays: int = pydantic.PrivateAttr(default=3)
        _new: list[int] = pydantic.PrivateAttr(default_factory=list)

    class Closed(pydantic.BaseModel):
        named: int = 0

    New.__qualname__ = Closed.__qualname__ = Old.__qualname__
    data = through_json(Codec([Old]).encode(Old(named=5, other=6), "v"))
    with pytest.raises(SnapshotError, match="'_gone'"):
        Codec([New]).decode(data, "v")
    made = Codec([New], drops_removed=True).decode(data, "v")

    assert (made.named, made.model_extra, made._stays, made._new) == (5, {"other": 6}, 2, [])

    with pytest.raises(SnapshotError, match="'other'"):
        Codec([Closed]).decode(data, "v")
    closed = Codec([Closed], drops_removed=True).decode(data, "v")
    assert (closed, closed.model_fields_set) == (Closed(named=5), {"named"})
    assert closed.model_extra is None


def test_an_open_field_may_become_a_declared_one():
    """An event that declared nothing held it beside its fields; now it is one of them."""
    old = made_later("event", "Thing", {})
    new = made_later("event", "Thing", {"a": (int, 0), "b": (int, 7)})
    data = through_json(Codec([old]).encode(old(a=1), "v"))

    assert Codec([new]).decode(data, "v").to_dict() == {"a": 1, "b": 7}

    data = through_json(Codec([old]).encode(old(a=1, other=2), "v"))
    with pytest.raises(SnapshotError, match="'other'"):
        Codec([new]).decode(data, "v")
    kept = Codec([new], drops_removed=True).decode(data, "v")
    assert kept.to_dict() == {"a": 1, "b": 7}
    gone = through_json(Codec([old, Number]).encode(old(a=1, other=Number()), "v"))
    assert Codec([new], drops_removed=True).decode(gone, "v").to_dict() == {"a": 1, "b": 7}
    data = through_json(Codec([old]).encode(old(a="text"), "v"))
    with pytest.raises(SnapshotError, match="'text'; expected int"):
        Codec([new]).decode(data, "v")


def versions(old: bool) -> type[Workflow]:
    """Return a workflow as it was, or as it is now."""
    item = made_later("event", "Item", {"n": (int, ...), **({"gone": (int, 0)} if old else {"new": (int, 5)})})  # fmt: skip
    state = made_later("model", "Notes", {"a": (int, 1), **({"gone": (int, 0)} if old else {"new": (int, 6)})})  # fmt: skip

    class Versioned(Workflow):
        @step
        async def begin(self, ctx: Context[state], ev: StartEvent) -> item:
            await ctx.store.set("a", 2)
            return item(n=1)

        @step
        async def end(self, ctx: Context[state], ev: item) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=(ev.to_dict(), ctx.store.snapshot_state().model_dump()))

    return Versioned


@on_each_backend
def test_a_run_continues_although_its_classes_have_changed(backend):
    """``resume`` and ``Context.from_dict`` take the option that drops removed fields."""

    async def main() -> None:
        async with versions(old=True)().run() as handler:
            await anyio.sleep(0.5)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        workflow = versions(old=False)()
        with pytest.raises(SnapshotError, match=r"\.gone is no field of"):
            workflow.resume(snapshot)
        with pytest.raises(SnapshotError, match=r"\.gone is no field of"):
            Context.from_dict(workflow, snapshot)

        expected = ({"n": 1, "new": 5}, {"a": 2, "new": 6})
        assert expected == await workflow.resume(snapshot, drop_removed_fields=True)
        context = Context.from_dict(workflow, snapshot, drop_removed_fields=True)
        assert expected == await workflow.run(ctx=context)

    run_virtually(backend, main)


# -- annotations and messages -----------------------------------------------------------------------


@attrs.define
class Numbers:
    whole: complex = 0j
    file: IO[str] | None = None
    text: TextIO | None = None
    count: int = 0
    ratios: list[float] = attrs.Factory(list)


@pytest.mark.anyio
async def test_numbers_and_files_are_what_type_checkers_say(tmp_path):
    """An int and a float will do for a complex; every file is a file."""
    store = StateStore(Numbers)
    with (tmp_path / "a").open("w") as file:
        for name, value in (
            ("whole", 1.5), ("whole", 1), ("whole", 1j), ("ratios", [1, 1.5]), ("file", file), ("text", file),
        ):  # fmt: skip
            await store.set(name, value)
            assert await store.get(name) is value
    with pytest.raises(TypeError, match="which is not complex"):
        await store.set("whole", "1")


@pytest.fixture
def numpy(monkeypatch):
    """Stand in for numpy, where only its classes count."""
    module = types.ModuleType("numpy")

    class generic:
        def item(self) -> int:
            return 5

    class int64(generic):
        pass

    class float64(generic, float):
        pass

    class ndarray:
        pass

    for kind in (generic, int64, float64, ndarray):
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "numpy", module)
    return module


@pytest.mark.anyio
async def test_a_number_of_numpy_is_told_how_to_become_plain(numpy):
    """The hint is the call that makes a Python value of it, in a state and in a snapshot."""
    store = StateStore(Numbers)
    for kind, call in (("int64", "value.item()"), ("ndarray", "value.tolist()")):
        value = getattr(numpy, kind)()
        with pytest.raises(TypeError, match=rf"expected a plain value: {re.escape(call)}$"):
            await store.set("count", value)
        with pytest.raises(SnapshotError, match=rf"expected a plain value: {re.escape(call)}$"):
            Codec([]).encode({"a": value}, "state")
        with pytest.raises(SnapshotError, match=rf"expected int, .*: {re.escape(call)}$"):
            Codec([Numbers]).encode(Numbers(count=value), "state")
    with pytest.raises(TypeError, match=re.escape("[item.item() for item in value]")):
        await store.set("ratios", [numpy.int64()])
    with pytest.raises(SnapshotError, match=re.escape("a plain value: value.item()")):
        Codec([]).encode(numpy.float64(1), "state")


#: Numbers of one hash.
TWINS = [number * (2**61 - 1) for number in range(1, 1_500)]


@pytest.mark.parametrize(
    "data",
    [
        {TAG: "dict", "v": [[n, 0] for n in TWINS]},
        {TAG: "set", "v": TWINS},
        {TAG: "frozenset", "v": TWINS},
        {TAG: "dict", "v": [[{TAG: "tuple", "v": [n]}, 0] for n in TWINS]},
        {TAG: "Counter", "v": {TAG: "dict", "v": [[n, 0] for n in TWINS]}},
    ],
    ids=lambda data: data[TAG],
)
def test_keys_of_one_hash_do_not_make_reading_quadratic(data):
    """More than a thousand are refused, at either end; as many others are read."""
    data = through_json(json.loads(json.dumps(data).replace("2305843009213693951", "1")))
    with pytest.raises(SnapshotError, match="more than 1,000 keys of one hash"):
        Codec([]).decode(data, "state")


def test_keys_of_one_hash_are_not_written():
    """What could not be read is not written; fewer, or others, are."""
    for value in (dict.fromkeys(TWINS), set(TWINS)):
        with pytest.raises(SnapshotError, match="more than 1,000 keys of one hash"):
            Codec([]).encode(value, "state")
    for value in (dict.fromkeys(TWINS[:1_000]), set(range(5_000))):
        assert Codec([]).decode(through_json(Codec([]).encode(value, "v")), "v") == value


BIG = "x" * 500_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "value", [BIG, BIG.encode(), [BIG], {"a": BIG}], ids=["str", "bytes", "list", "dict"]
)
async def test_a_refusal_shows_two_hundred_characters_of_a_value(value):
    """A message is for a person: it shows the beginning of a value, whatever its size."""
    store = StateStore(Numbers)
    for refused in (store.set("count", value), store.set_state(value)):
        with pytest.raises(TypeError) as caught:
            await refused
        assert len(str(caught.value)) < 400
    tagged: Any = {"date": BIG, "Decimal": BIG, "Fraction": [BIG], "UUID": BIG, "ZoneInfo": BIG}
    for tag, content in tagged.items():
        with pytest.raises(SnapshotError) as refusal:
            Codec([Color]).decode({TAG: tag, "v": content}, "state")
        assert len(str(refusal.value)) < 400
    for data in ({TAG: "Color", "v": BIG}, {TAG: BIG, "v": 0}):
        with pytest.raises(SnapshotError) as refusal:
            Codec([Color]).decode(data, "state")
        assert len(str(refusal.value)) < 400


class Number(Event):
    n: int = 0


class Numbered(Event, validate=True):
    n: int


class Simple(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ev.call(ctx)
        return StopEvent()


OUTSIDE: dict[str, Any] = {
    **{
        option: lambda option=option: Simple(**{option: BIG})
        for option in ("timeout", "stream_buffer", "stream_history", "skip_graph_checks", "observers",
                       "num_concurrent_runs", "serializable")
    },
    "start_event": lambda: Simple().run(start_event=BIG),
    "run_id": lambda: Simple().run(run_id=[BIG]),
    "ctx": lambda: Simple().run(ctx=BIG),
    "resume": lambda: Simple().resume(BIG),
    "version": lambda: Simple().resume({"sluicegate": BIG}),
    "from_dict": lambda: Context.from_dict(Simple(), BIG),
    "Context": lambda: Context(BIG),
    "unknown field": lambda: Number(**{BIG: 1}),
    "validated": lambda: Numbered(n=BIG),
    "decoded": lambda: decode_event(Number, {"n": BIG}),
    "decoded name": lambda: decode_event(Number, {BIG: 1}),
    "decoded data": lambda: decode_event(Number, BIG),
}  # fmt: skip
INSIDE: dict[str, Any] = {
    "send": lambda ctx: ctx.send_event(BIG),
    "send to": lambda ctx: ctx.send_event(Number(), BIG),
    "wait": lambda ctx: ctx.wait_for_event(BIG),
    "requirements": lambda ctx: ctx.wait_for_event(HumanResponseEvent, requirements=BIG),
    "waits": lambda ctx: ctx.wait_for_event(HumanResponseEvent, requirements={"a": BIG}, timeout=1),
    "collect": lambda ctx: ctx.collect_events(StartEvent(), BIG),
    "write": lambda ctx: ctx.write_event_to_stream(BIG),
    "publish": lambda ctx: ctx.stream.send(BIG),
    "get": lambda ctx: ctx.store.get(BIG),
    "set": lambda ctx: ctx.store.set(f"{BIG}.", 1),
    "set_state": lambda ctx: ctx.store.set_state(BIG),
    "child": lambda ctx: ctx.run_child(BIG),
}


@pytest.mark.parametrize("call", OUTSIDE.values(), ids=OUTSIDE)
def test_a_message_is_short_whatever_was_given(call):
    """No argument of any size makes a message that no terminal can show."""
    refusals = (TypeError, ValueError, WorkflowRuntimeError, WorkflowValidationError)
    with pytest.raises(refusals) as caught:
        call()

    assert len(str(caught.value)) < 1_000


@on_each_backend
@pytest.mark.parametrize("call", INSIDE.values(), ids=INSIDE)
def test_a_message_to_a_step_is_short_whatever_was_given(backend, call):
    """The notes of the failure are short too."""

    async def run_it(ctx: Context) -> None:
        found = call(ctx)
        if inspect.isawaitable(found):
            await found

    async def main() -> None:
        with pytest.raises((TypeError, ValueError, LookupError, WorkflowRuntimeError)) as caught:
            await Simple().run(call=run_it, text=BIG)

        assert len("".join([str(caught.value), *caught.value.__notes__])) < 1_500

    run_virtually(backend, main)


def deep(levels: int) -> Any:
    """Return a list in a list in a list."""
    made: Any = []
    for _ in range(levels):
        made = [made]
    return made


def flattened(data: Any) -> None:
    """Take a deep list apart: the destructor of one is not for every stack."""
    while data:
        data = data.pop()


@pytest.mark.slow
@on_each_backend
def test_a_deep_snapshot_is_a_clear_error(backend):
    """A snapshot that did not come through JSON may be as deep as it likes, at any place."""

    async def main() -> None:
        workflow = keeper(Careful)()
        async with workflow.run() as handler:
            await anyio.sleep(0.5)
            snapshot = handler.snapshot()
            handler.cancel()
        places = [(k, None) for k in snapshot] + [("run", k) for k in snapshot["run"]]
        for key, inner in [*places, ("shape", "only")]:
            nested = deep(100_000)
            damaged = {**snapshot, key: nested}
            if inner is not None:
                damaged[key] = {**snapshot[key], inner: nested}
            with pytest.raises(SnapshotError) as caught:
                workflow.resume(damaged)
            assert len(str(caught.value)) < 1_000
            flattened(nested)
        with pytest.raises(SnapshotError):
            workflow.resume(deep(0))

    run_virtually(backend, main)


def test_a_state_that_declares_nothing_is_kept_as_it_was():
    """A ``DictState`` takes what the codec gives: there are no annotations to check."""
    assert StateStore(None, DictState(a=1)).snapshot_state() == DictState(a=1)
