"""Events as plain JSON data, and the JSON Schema of what `decode_event` takes."""

from __future__ import annotations

import base64
import dataclasses
import enum
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from sluicegate import ChildEvent, Event, StartEvent, StopEvent
from sluicegate._data.from_outside import decode_event
from sluicegate._data.json import data_of, encode, schema_of


jsonschema = pytest.importorskip("jsonschema")
T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: int
    right: str = "none"


class Options(TypedDict):
    depth: int
    name: NotRequired[str]


@attrs.define
class Point:
    x: int
    _y: int
    label: str = "p"


@attrs.define
class Box(Generic[T]):
    held: T


@attrs.define
class Checked:
    size: Annotated[int, pydantic.AfterValidator(abs)]
    text: Annotated[Any, pydantic.PlainValidator(str)] = ""


@dataclasses.dataclass
class Node:
    """A node and its children."""

    value: int
    children: list[Node] = dataclasses.field(default_factory=list)


class Model(pydantic.BaseModel):
    size: int
    parent: Model | None = None


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    first_name: str
    age: Annotated[int, msgspec.Meta(ge=0)] = 0


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str


class Draft(Event):
    text: str


class Review(Event):
    draft: Draft
    marks: list[int] = attrs.field(factory=list)


class Anything(Event, open=True):
    number: int


class Chunk(Event, Generic[T]):
    value: T


class Loop(Event):
    inner: Loop | None = None


#: An annotation, data that it takes, and data that it refuses.
TABLE: list[tuple[Any, list[Any], list[Any]]] = [
    (Any, [None, 1, "a", [1], {"a": 1}], []),
    (object, [None, 1, {"a": [1]}], []),
    (None, [None], [0, "", False]),
    (bool, [True, False], [0, 1, "true", None]),
    (int, [0, -1, 2**70], [1.5, "1", None, True]),
    (float, [0, 1.5, -2], ["1.5", None, True]),
    (str, ["", "a"], [1, None, ["a"]]),
    (bytes, [base64.b64encode(b"a").decode()], [1, None]),
    (datetime, ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00"], [1, None]),
    (date, ["2020-01-01"], ["yesterday", 1]),
    (time, ["12:00:00"], [1, None]),
    (timedelta, ["PT1H"], [1, None]),
    (Decimal, ["1.5", 1.5, 2], [None, [1], {}]),
    (UUID, [str(UUID(int=1))], ["no", 1]),
    (Path, ["a/b"], [1, None]),
    (Fraction, ["1/3"], [None, [1]]),
    (IPv4Address, ["127.0.0.1"], [None, [1]]),
    (re.Pattern, ["a+"], [1, None]),
    (complex, [], [1, "1j", None]),
    (Colour, ["red", "blue"], ["RED", "green", 1, None]),
    (Right, [1, 2, 3], ["READ", None]),
    (UserId, [1], ["1", None]),
    (Literal["a", 1] | None, ["a", 1, None], ["b", 2, True]),
    (int | None, [1, None], ["1", 1.5]),
    (int | str, [1, "1"], [1.5, None, [1]]),
    (Annotated[int, "a note"], [1], ["1"]),
    (Annotated[int, msgspec.Meta(ge=3)], [3], [2, "3"]),
    (list, [[], [1, "a"]], [{}, "a"]),
    (list[int], [[], [1, 2]], [["1"], [None], 1, {}]),
    (set[int], [[], [1, 1]], [["1"], {}]),
    (frozenset[str], [["a"]], [[1]]),
    (deque[int], [[1]], [["1"], {}]),
    (Sequence[int], [[1]], [["1"], 1]),
    (Iterable[int], [[1]], [["1"], 1]),
    (tuple[int, str], [[1, "a"]], [[1], [1, "a", 2], ["a", 1], {}]),
    (tuple[int, ...], [[], [1, 2]], [["a"]]),
    (tuple[Point, int], [[{"x": 1, "y": 2}, 3]], [[{"x": 1}, 3], [{"x": 1, "y": 2}]]),
    (Pair, [[1], [1, "a"]], [[], [1, 2], [1, "a", 2], {"left": 1}]),
    (dict, [{}, {"a": 1}], [[], "a"]),
    (dict[str, int], [{"a": 1}], [{"a": "1"}, []]),
    (dict[int, str], [{"1": "a", "-2": "b"}], [{"a": "a"}, {"1": 1}]),
    (dict[Colour, int], [{"red": 1}], [{"green": 1}, {"red": "1"}]),
    (Mapping[str, Point], [{"a": {"x": 1, "y": 2}}], [{"a": {"x": 1}}]),
    (Options, [{"depth": 1}, {"depth": 1, "name": "a", "more": 2}], [{}, {"depth": "1"}, {"depth": 1, "name": 1}]),
    (Point, [{"x": 1, "y": 2}, {"x": 1, "_y": 2, "label": "q", "more": 1}], [{"x": 1}, {"x": 1, "y": "2"}, [1, 2]]),
    (Box[int], [{"held": 1}], [{"held": "1"}, {}]),
    (list[Box[str]], [[{"held": "a"}]], [[{"held": 1}]]),
    (Node, [{"value": 1, "children": [{"value": 2}]}], [{"value": 1, "children": [{}]}, {}]),
    (Model, [{"size": 1, "parent": {"size": 2}}], [{"size": "a"}, {}, {"size": 1, "parent": {}}]),
    (Checked, [{"size": 1}, {"size": 1, "text": 2}], [{"size": "a"}, {"size": None}]),
    (Strict, [{"firstName": "a"}, {"firstName": "a", "age": 1}], [{"first_name": "a"}, {"firstName": "a", "age": -1}, {"firstName": "a", "x": 1}]),
    (Row, [[1, "a"]], [{"a": 1, "b": "a"}, ["a", 1]]),
    (Draft, [{"text": "a"}, {"event": "Draft", "text": "a"}], [{}, {"event": "Review", "text": "a"}, {"text": 1}, {"text": "a", "more": 1}]),
    (Anything, [{"number": 1, "more": [1]}], [{"more": 1}, {"number": "1"}]),
    (Chunk[int], [{"value": 1}], [{"value": "1"}, {}]),
    (Draft | Review, [{"event": "Draft", "text": "a"}, {"event": "Review", "draft": {"text": "a"}}], [{"text": "a"}, {"event": "Draft"}, {"event": "Other", "text": "a"}]),
    (Draft | str | None, [{"text": "a"}, "a", None], [1, {}, {"text": 1}]),
    (list[Draft | Review], [[], [{"event": "Draft", "text": "a"}]], [[{"text": "a"}]]),
    (Point | Node, [{"x": 1, "y": 2}, {"value": 1}], [{}, {"x": 1}, 1]),
    (Model | None, [{"size": 1}, None], [{}, 1]),
    (Loop, [{}, {"inner": {"inner": None}}], [{"inner": 1}, {"inner": {"x": 1}}]),
]  # fmt: skip
CASES = [
    pytest.param(hint, data, is_taken, id=f"{getattr(hint, '__name__', hint)}-{data}")
    for hint, taken, refused in TABLE
    for is_taken, each in ((True, taken), (False, refused))
    for data in each
]


def holder(hint):
    """Return an event class with one field of an annotation."""
    return type("Holder", (Event,), {"__annotations__": {"field": hint}, "__module__": __name__})


def validates(schema, data):
    """Whether data is valid by a schema, which is checked against the dialect first."""
    checker = jsonschema.Draft202012Validator
    checker.check_schema(schema)
    return checker(schema, format_checker=checker.FORMAT_CHECKER).is_valid(data)


@pytest.mark.parametrize(("hint", "data", "is_taken"), CASES)
def test_the_schema_takes_what_decode_event_takes(hint, data, is_taken):
    """For each kind of annotation, valid data decodes, and data that decodes is valid."""
    cls = holder(hint)
    try:
        decode_event(cls, {"field": data})
    except TypeError:
        decodes = False
    else:
        decodes = True

    assert is_taken == decodes
    assert is_taken == validates(schema_of(cls), {"field": data})


class Everything(StartEvent):
    """Starts a search."""

    topic: str = pydantic.Field(description="What to look for.", examples=["locks"])
    where: Path = Path("here")
    colour: Colour = Colour.RED
    limit: int | None = None
    tags: list[str] = attrs.field(factory=list)
    size: int = attrs.field(default=1, converter=int)
    _private: int = 0


def test_a_schema_has_fields_defaults_and_descriptions():
    """A schema is an object with the fields, their defaults and descriptions, and a dialect."""
    assert schema_of(Everything) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Everything",
        "description": "Starts a search.",
        "type": "object",
        "properties": {
            "topic": {
                "type": "string",
                "description": "What to look for.",
                "examples": ["locks"],
            },
            "where": {"type": "string", "default": "here"},
            "colour": {"$ref": "#/$defs/Colour", "default": "red"},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"type": "integer", "default": 1},
        },
        "required": ["topic"],
        "additionalProperties": False,
        "$defs": {
            "Colour": {"title": "Colour", "description": "A colour.", "enum": ["blue", "red"]}
        },
    }


class Noted(Event):
    city: Annotated[str, "Name of the city"]
    sizes: list[Annotated[int, msgspec.Meta(ge=1), "In metres"]]
    draft: Annotated[Draft | None, "By a person"] = None
    kind: Annotated[str, "Not this"] = pydantic.Field(default="a", description="Of the city")


def test_a_text_in_an_annotation_is_a_description():
    """``Annotated[str, "text"]`` describes a field; a description of the field itself wins."""
    properties = schema_of(Noted)["properties"]

    assert properties["city"] == {"type": "string", "description": "Name of the city"}
    assert properties["sizes"]["items"]["description"] == "In metres"
    assert properties["draft"]["description"] == "By a person"
    assert properties["kind"]["description"] == "Of the city"


def test_an_open_event_takes_further_fields():
    """The schema of an open event takes any further field; a closed one refuses it."""
    assert validates(schema_of(Anything), {"number": 1, "more": None})
    assert validates(schema_of(StopEvent), {"result": 5})
    assert not validates(schema_of(Draft), {"text": "a", "more": None})
    # At the top the class is known, so no field names it.
    assert not validates(schema_of(Draft), {"event": "Draft", "text": "a"})


def test_classes_of_one_name_have_definitions_of_their_own():
    """Classes with the same name do not share a definition, whoever makes it."""

    def named(hint):
        made = attrs.make_class("Same", {"field": attrs.field(type=hint)})
        made.__annotations__ = {"field": hint}  # attrs before 24.1 sets none
        return made

    class Both(Event):
        one: Any
        two: Any
        three: Any
        four: Any

    Both.__annotations__ = {
        "one": named(int),
        "two": named(str),
        "three": enum.Enum("Same", {"A": "a"}),
        "four": pydantic.create_model(
            "Outer", x=(pydantic.create_model("Same", y=(int, ...)), ...)
        ),
    }
    schema = schema_of(Both)

    assert sorted(schema["$defs"]) == ["Same", "Same_2", "Same_3", "Same_4"]
    assert validates(
        schema, {"one": {"field": 1}, "two": {"field": "a"}, "three": "a", "four": {"x": {"y": 1}}}
    )
    assert not validates(
        schema,
        {"one": {"field": "a"}, "two": {"field": "a"}, "three": "a", "four": {"x": {"y": 1}}},
    )


def test_an_annotation_that_cannot_be_resolved_is_an_error():
    """A schema of a class with an unknown name in an annotation raises a TypeError."""

    class Lost(Event):
        field: Unknown  # noqa: F821

    with pytest.raises(TypeError, match=r"cannot resolve the annotations of .*Lost.*'Unknown'"):
        schema_of(Lost)


@pytest.mark.parametrize(
    "event",
    [
        Everything(topic="locks", where=Path("a"), tags=["b"], limit=3),
        Anything(number=1, more={"a": [1, None]}),
        Review(draft=Draft(text="a"), marks=[1]),
        Chunk[int](value=1),
        holder(datetime)(field=datetime(2020, 1, 1, tzinfo=UTC)),
        holder(dict[str, Node])(field={"a": Node(1, [Node(2)])}),
        holder(Model)(field=Model(size=1, parent=Model(size=2))),
        holder(Decimal)(field=Decimal("1.50")),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_as_data_decodes_to_an_equal_event(event):
    """`data_of` gives plain JSON data, valid by the schema of the class, that decodes to the same."""
    data = data_of(event)
    shown = {n: v for n, v in event.to_dict().items() if not n.startswith("_")}
    back = decode_event(type(event), data)

    assert data == msgspec.json.decode(msgspec.json.encode(data))
    assert validates(schema_of(type(event)), data)
    assert repr(shown) == repr({n: v for n, v in back.to_dict().items() if not n.startswith("_")})


def test_an_event_as_data_has_no_tag_and_hides_private_fields():
    """Data has the public fields alone; `encode` puts the name of the class before them."""
    event = Everything(topic="a")
    data = data_of(event)

    assert {"topic", "where", "colour", "limit", "tags", "size"} == set(data)
    assert {"event": "Everything", **data} == msgspec.json.decode(encode(event))
    assert data_of(StopEvent()) == {"result": None}


def test_a_value_that_json_has_not_is_its_repr():
    """A value that JSON cannot hold becomes its repr, at any depth."""
    event = ChildEvent(path=("a",), event=Anything(number=1, live={"a": range(2)}))

    assert data_of(event) == {"path": ["a"], "event": {"number": 1, "live": {"a": "range(0, 2)"}}}
