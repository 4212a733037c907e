"""Data from outside: into every kind of class that a field may name, or an error at the field."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import re
import sys
from datetime import date
from enum import Enum
from typing import (
    Annotated,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Required,
    TypeAlias,
    TypedDict,
    TypeVar,
)

import attrs
import msgspec
import pydantic
import pytest
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    ImportString,
    PositiveInt,
    RootModel,
)

from sluicegate import Event, StopEvent
from sluicegate._data.from_outside import decode_event
from sluicegate._definition.configuration import read_file, read_part


T = TypeVar("T")


class Item(BaseModel):
    name: str
    price: float = Field(gt=0)


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    when: dt.date


class Aliased(BaseModel):
    origin: str = Field(alias="from")


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    size: int


class Page(BaseModel, Generic[T]):
    rows: list[T]


class Numbers(RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class Checked:
    n: PositiveInt


@dataclasses.dataclass
class Holder:
    item: Item
    twice: dataclasses.InitVar[int] = 0
    total: int = dataclasses.field(init=False)

    def __post_init__(self, twice: int) -> None:
        self.total = 2 * twice


def halved(value: str) -> int:
    return len(value) // 2


@attrs.define
class Boxed(Generic[T]):
    value: T
    size: int = attrs.field(default=1, alias="how_big", validator=attrs.validators.gt(0))
    half: int = attrs.field(default="", converter=halved)


@attrs.define
class Named:
    name: str


@attrs.define
class Sized:
    name: str
    size: int


class Row(TypedDict, total=False):
    item: Required[Item]
    count: int


class Pair(NamedTuple):
    item: Item
    count: int = 2


class Packed(msgspec.Struct, rename="camel"):
    my_item: Item
    count: int = 3


class Note(Event):
    text: str


Maybe: TypeAlias = "Item | None"
Known = NewType("Known", Item)


class Order(Event):
    item: Item | None = None
    items: list[Item] = []
    by_number: dict[int, Item] = {}
    pair: tuple[Item, int] | None = None
    several: set[PositiveIntInside] = set()
    maybe: Maybe = None
    known: Known | None = None
    text_or_item: str | Item = ""
    one_of: Cat | Dog | None = None
    told: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    strict: Strict | None = None
    aliased: Aliased | None = None
    page: Page[Item] | None = None
    numbers: Numbers | None = None
    checked: Checked | None = None
    holder: Holder | None = None
    boxed: Boxed[Item] | None = None
    either: Named | Sized | None = None
    mixed: Item | Sized | Note | int | None = None
    row: Row | None = None
    row_pair: Pair | None = None
    packed: Packed | None = None
    url: HttpUrl | None = None
    when: AwareDatetime | None = None
    address: ipaddress.IPv4Address | None = None
    pattern: re.Pattern[str] | None = None
    many: set[int] | list[str] = []
    limited: Annotated[int, msgspec.Meta(gt=0)] = 1
    imported: ImportString | None = None
    tags: list[str] = attrs.field(default="", converter=lambda text: text.split(","))
    half: int = attrs.field(default="", converter=halved)
    size: int = attrs.field(default=1, validator=attrs.validators.gt(0))


class Importing(BaseModel):
    inner: ImportString


class Takes(Event):
    model: Importing | None = None
    models: list[Importing] = []


PositiveIntInside = NewType("PositiveIntInside", int)
ITEM = {"name": "a", "price": 1}
MADE = Item(name="a", price=1.0)


@pytest.mark.parametrize(
    ("name", "data", "value"),
    [
        ("item", ITEM, MADE),
        ("item", MADE, MADE),
        ("item", None, None),
        ("items", [ITEM, ITEM], [MADE, MADE]),
        ("by_number", {"7": ITEM}, {7: MADE}),
        ("pair", [ITEM, 3], (MADE, 3)),
        ("several", [1, 2, 1], {1, 2}),
        ("maybe", ITEM, MADE),
        ("known", ITEM, MADE),
        ("text_or_item", "x", "x"),
        ("text_or_item", ITEM, MADE),
        ("one_of", {"kind": "dog", "size": 1}, Dog(kind="dog", size=1)),
        ("told", {"kind": "cat", "lives": 9}, Cat(kind="cat", lives=9)),
        ("strict", {"when": "2024-01-02"}, Strict(when=dt.date(2024, 1, 2))),
        ("aliased", {"from": "x"}, Aliased(**{"from": "x"})),
        ("page", {"rows": [ITEM]}, Page[Item](rows=[MADE])),
        ("numbers", [1, 2], Numbers([1, 2])),
        ("checked", {"n": 1}, Checked(n=1)),
        ("boxed", {"value": ITEM, "how_big": 2, "half": "abcd"}, Boxed(MADE, 2, "abcd")),
        ("either", {"name": "a", "size": 1}, Sized("a", 1)),
        ("either", {"name": "a"}, Named("a")),
        ("mixed", ITEM, MADE),
        ("mixed", {"name": "a", "size": 2}, Sized("a", 2)),
        ("mixed", 4, 4),
        ("row", {"item": ITEM}, {"item": MADE}),
        ("row_pair", [ITEM], Pair(MADE)),
        ("packed", {"myItem": ITEM}, Packed(MADE)),
        ("url", "https://a.example/", HttpUrl("https://a.example/")),
        (
            "when",
            "2024-01-02T03:04:05Z",
            dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc),  # noqa: UP017
        ),
        ("address", "1.2.3.4", ipaddress.IPv4Address("1.2.3.4")),
        ("pattern", "a+", re.compile("a+")),
        ("many", [2, 1], {1, 2}),
        ("many", ["a"], ["a"]),
        ("limited", 4, 4),
        ("half", "abcd", 2),
    ],
)
def test_data_becomes_what_the_annotation_names(name, data, value):
    """P19: models, dataclasses, attrs classes, typed dicts, structs, alone and in containers."""
    made = decode_event(Order, {name: data})[name]

    assert made == value
    assert type(made) is type(value)


def test_constructors_run():
    """Everything that a class has runs: init variables, post-init, events among other kinds."""
    order = decode_event(Order, {"holder": {"item": ITEM, "twice": 4}, "mixed": {"text": "b"}})

    assert (order.holder.item, order.holder.total) == (MADE, 8)
    assert repr(order.mixed) == "Note(text='b')"


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("item", {**ITEM, "price": -1}, "greater than 0 - at `$.price`"),
        (
            "items",
            [ITEM, {"name": 1}],
            "valid string - at `$[1].name`; Field required - at `$[1].price`",
        ),
        ("by_number", {"7": {"name": "a"}}, "Field required - at `$['7'].price`"),
        ("by_number", {"x": ITEM}, "at `$['x']`"),
        ("pair", [ITEM], "Expected `array` of length 2, got 1"),
        ("pair", [ITEM, "x"], "Expected `int`, got `str` - at `$[1]`"),
        ("text_or_item", 3, "Expected `str`, got `int`"),
        ("text_or_item", {"name": "a"}, "Field required - at `$.price`"),
        ("one_of", {"kind": "cow"}, "at `$.Cat.kind`"),
        ("told", {"kind": "dog", "size": "x"}, "at `$.dog.size`"),
        ("strict", {"when": "2024-01-02", "more": 1}, "not permitted - at `$.more`"),
        ("page", {"rows": [1]}, "at `$.rows[0]`"),
        ("checked", {"n": 0}, "greater than 0 - at `$.n`"),
        ("holder", {"item": {}}, "Field required - at `$.item.name`"),
        ("boxed", {"value": ITEM, "how_big": 0}, "'size' must be > 0: 0"),
        ("boxed", {"how_big": 1}, "missing required field `value`"),
        ("either", {"size": 1}, "fits none of Named | Sized"),
        ("mixed", {"zebra": 1}, "Note has no field 'zebra'"),
        ("row", {"count": 1}, "missing required field `item`"),
        ("row_pair", [ITEM, "x"], "at `$[1]`"),
        ("packed", {"myItem": {"name": "a"}}, "at `$.myItem.price`"),
        ("url", "zz", "valid URL"),
        ("when", "2024-01-02T03:04:05", "timezone"),
        ("address", "1.2.3", "Expected 4 octets"),
        ("pattern", "(", "unterminated"),
        ("limited", 0, "Expected `int` >= 1"),
        ("half", 3, "Expected `str`, got `int`"),
    ],
)
def test_bad_data_points_at_the_field(name, data, text):
    """P19: the error names the event, the field, and the way to what does not fit."""
    with pytest.raises(TypeError) as caught:
        decode_event(Order, {name: data})

    assert str(caught.value).startswith(f"Order.{name} is ")
    assert text in str(caught.value)


def test_error_of_a_validator_or_converter_of_the_event_names_it():
    """P19: what the class itself refuses is the same kind of error, with the cause kept."""
    with pytest.raises(TypeError, match="Order refuses its fields: 'size' must be > 0") as caught:
        decode_event(Order, {"size": 0})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(TypeError, match="Order refuses its fields: 'list' object"):
        decode_event(Order, {"tags": ["a"]})


def test_data_cannot_have_anything_imported():
    """P19: nothing is imported by name, not by a type of pydantic either."""

    for cls, data in (
        (Order, {"imported": "tests.no_such_module"}),
        (Takes, {"model": {"inner": "tests.no_such_module"}}),
        (Takes, {"models": [{"inner": "tests.no_such_module"}]}),
    ):
        with pytest.raises(TypeError, match="imports the module that the data names"):
            decode_event(cls, data)


def test_deep_data_is_a_clear_error():
    """P19: whatever its depth, data ends in an error that names the field."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]

    for name in ("numbers", "items", "page", "mixed"):
        with pytest.raises(TypeError, match=f"Order.{name} is "):
            decode_event(Order, {name: deep})


def test_long_value_is_cut_in_the_error():
    """A refusal shows the beginning of a value."""
    with pytest.raises(TypeError) as caught:
        decode_event(Order, {"item": "x" * 1_000_000})

    assert len(str(caught.value)) < 500


# -- files -------------------------------------------------------------------------------------------


def test_part_of_a_file_becomes_what_the_annotation_names():
    """A configuration is decoded by the same rules as an event."""
    document = {"shop": {"items": [ITEM], "pets": [{"kind": "dog", "size": 1}]}}

    assert read_part("it", "shop.items", list[Item], document) == [MADE]
    assert read_part("it", "shop.pets", list[Cat | Dog], document) == [Dog(kind="dog", size=1)]
    with pytest.raises(ValueError, match=re.escape("it does not fit list[Item]: ")) as caught:
        read_part("it", "shop.items", list[Item], {"shop": {"items": [{"name": "a"}]}})
    assert "`shop.items[0].price`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("deep.json", b"[" * 100_000, "deep.json is nested too deeply"),
        ("deep.toml", b"a = " + b"[" * 100_000, "deep.toml"),
        ("latin.json", '{"a": "é"}'.encode("latin-1"), "latin.json is not UTF-8"),
        ("latin.toml", 'a = "é"'.encode("latin-1"), "latin.toml is not UTF-8"),
        ("wide.json", '{"a": 1}'.encode("utf-16"), "wide.json is not UTF-8"),
    ],
)
def test_file_that_cannot_be_read_is_named(tmp_path, name, content, text):
    """A file that is too deep or not UTF-8 is a ValueError with its name, not a traceback of a codec."""
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        read_file(path)
    assert type(caught.value) is ValueError


def test_file_with_a_byte_order_mark_is_read(tmp_path):
    """Editors on Windows put one there."""
    path = tmp_path / "marked.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')

    assert read_file(path) == {"a": 1}


class Color(Enum):
    RED = "red"


@attrs.frozen
class Place:
    city: str


class Purchase(Event):
    count: int
    tags: list[str] = []
    due: date | None = None
    color: Color | None = None
    place: Place | None = None


class Cash(Event):
    amount: int


class Card(Event):
    number: str


class Payment(Event):
    by: Cash | Card


def test_data_becomes_the_class_that_the_caller_names():
    """P19: values are converted to what the annotations say, and to nothing else."""
    order = decode_event(
        Purchase,
        {"count": 2, "due": "2026-02-03", "color": "red", "place": {"city": "Basel"}},
    )

    assert type(order) is Purchase
    assert order.due == date(2026, 2, 3)
    assert order.color is Color.RED
    assert order.place == Place("Basel")


@pytest.mark.parametrize(
    "tag",
    ["__class__", "__type__", "type", "qualified_name", "__sluicegate__", "py/object", "$type"],
)
def test_data_cannot_name_a_class(tag):
    """P19: a name in the data is a field like any other, and an unknown one is refused."""
    name = "tests.promises.no_such_module.Evil"
    with pytest.raises(TypeError, match="Purchase"):
        decode_event(Purchase, {"count": 1, tag: name})

    # An open event keeps it as the plain text that it is.
    event = decode_event(StopEvent, {tag: name})
    assert type(event) is StopEvent
    assert event[tag] == name
    assert "tests.promises.no_such_module" not in sys.modules


def test_data_chooses_among_declared_classes_only():
    """P19: where several classes may stand, the data may name one of them, and no other."""
    payment = decode_event(Payment, {"by": {"event": "Card", "number": "4"}})
    assert type(payment.by) is Card
    for name in ("Purchase", "StopEvent", "tests.promises.no_such_module.Card", "subprocess.Popen"):
        with pytest.raises(TypeError, match=r"Payment\.by"):
            decode_event(Payment, {"by": {"event": name, "number": "4"}})

    assert "tests.promises.no_such_module" not in sys.modules


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"count": "two"}, "count"),
        ({"count": 1.5}, "count"),
        ({"count": None}, "count"),
        ({"count": 1, "tags": ["a", 2]}, "tags"),
        ({"count": 1, "tags": "a"}, "tags"),
        ({"count": 1, "due": "yesterday"}, "due"),
        ({"count": 1, "color": "blue"}, "color"),
        ({"count": 1, "place": {"town": "Basel"}}, "place"),
        ({"count": 1, "place": {"city": 4}}, "place"),
        ({}, "count"),
        ({"count": 1, "cuont": 2}, "cuont"),
    ],
)
def test_bad_input_points_at_the_field(data, field):
    """P19: the error names the class and the field."""
    with pytest.raises(TypeError) as caught:
        decode_event(Purchase, data)

    assert "Purchase" in str(caught.value)
    assert field in str(caught.value)


def test_private_field_is_not_set_from_outside():
    """P19: what an open event takes from outside does not replace what it keeps to itself."""

    class Keeps(Event, open=True):
        _secret: int = 0

    assert Keeps(other=1).other == 1
    with pytest.raises(TypeError, match=r"Keeps\._secret is private"):
        Keeps(_secret=1)
