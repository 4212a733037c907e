"""Events in pydantic's models: validated, written and described, so that FastAPI can use them."""

from __future__ import annotations

import datetime as dt
import gc
import json
import weakref
from typing import Annotated, Generic, Literal, TypeVar

import attrs
import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from sluicegate import Event, StartEvent, StopEvent


T = TypeVar("T")


class Cat(Event):
    """A cat."""

    kind: Literal["cat"] = "cat"
    born: dt.date | None = None


class Dog(Event):
    kind: Literal["dog"] = "dog"
    size: int = attrs.field(default=1, validator=attrs.validators.gt(0))


class Tree(Event):
    name: str = Field("?", description="what it is called", alias="called")
    left: Tree | None = None
    many: list[Tree] = Field(default_factory=list)
    _depth: int = 0


class Boxed(Event, Generic[T]):
    value: T


class Visit(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Cat | Dog] = []
    begin: StartEvent | None = None


def test_mapping_becomes_an_event():
    """A model makes events of data, by its own rules of conversion, at any depth."""
    visit = Visit.model_validate_json(
        '{"pet": {"kind": "cat", "born": "2024-01-02"}, "others": [{"kind": "dog", "size": "3"}],'
        ' "begin": {"anything": [1]}}'
    )

    assert type(visit.pet) is Cat
    assert visit.pet.born == dt.date(2024, 1, 2)
    assert repr(visit.others) == "[Dog(kind='dog', size=3)]"
    assert visit.begin.anything == [1]


def test_instance_is_taken_as_it_is():
    """Validation keeps the very event, subclasses included."""

    class Small(Dog):
        pass

    dog, small = Dog(), Small()
    visit = Visit(pet=dog, others=[small, dog])

    assert visit.pet is dog
    assert visit.others[0] is small


@pytest.mark.parametrize(
    ("data", "place", "text"),
    [
        ({"pet": {"kind": "dog", "zebra": 1}}, ("pet", "dog", "zebra"), "not permitted"),
        ({"pet": {"kind": "dog", "size": 0}}, ("pet", "dog"), "'size' must be > 0"),
        ({"pet": {"kind": "dog", "size": "x"}}, ("pet", "dog", "size"), "valid integer"),
        ({"pet": {"kind": "cat", "born": "x"}}, ("pet", "cat", "born"), "valid date"),
        ({"pet": {"kind": "cow"}}, ("pet",), "does not match any of the expected tags"),
        ({"pet": Cat(), "begin": 3}, ("begin",), "valid dictionary"),
    ],
)
def test_bad_data_is_an_error_of_pydantic_at_the_field(data, place, text):
    """P19: what does not fit is a ValidationError that points at the field."""
    with pytest.raises(ValidationError) as caught:
        Visit.model_validate(data)

    [error] = caught.value.errors()
    assert error["loc"] == place
    assert text in error["msg"]


def test_type_error_of_a_constructor_is_an_error_of_pydantic():
    """A class that validates refuses with TypeError, which pydantic would let through."""

    class Hooked(Event):
        n: int = 0

        def __attrs_post_init__(self) -> None:
            raise TypeError("never")

    with pytest.raises(ValidationError, match="never"):
        TypeAdapter(Hooked).validate_python({"n": 1})


def test_event_is_written_as_its_fields():
    """``model_dump`` and JSON give the fields under their keywords, and read back the same."""
    tree = Tree(called="a", left=Tree(called="b"), many=[Tree()])
    adapter = TypeAdapter(Tree)
    leaf = {"called": "?", "left": None, "many": []}

    assert adapter.dump_python(tree) == {
        "called": "a",
        "left": {**leaf, "called": "b"},
        "many": [leaf],
    }
    assert repr(adapter.validate_json(adapter.dump_json(tree))) == repr(tree)


def test_open_event_is_written_with_all_it_has():
    """Open fields are written too, events within them included."""

    class Holder(BaseModel):
        any: Event
        stop: StopEvent

    held = Holder(
        any=Dog(), stop=StopEvent(result=[Cat(born=dt.date(2024, 1, 2))], why={"d": Dog()})
    )

    assert json.loads(held.model_dump_json()) == {
        "any": {"kind": "dog", "size": 1},
        "stop": {
            "result": [{"kind": "cat", "born": "2024-01-02"}],
            "why": {"d": {"kind": "dog", "size": 1}},
        },
    }


def test_parts_are_left_out_as_of_a_model():
    """``exclude`` and ``include`` reach into an event."""
    visit = Visit(pet=Dog(), others=[Dog(size=2)])

    assert visit.model_dump(exclude={"pet": {"size"}, "others": True, "begin": True}) == {
        "pet": {"kind": "dog"}
    }


def test_json_schema_describes_the_event():
    """The schema names the class, its fields, their defaults and descriptions, and is closed."""
    schema = Visit.model_json_schema()
    tree = TypeAdapter(Tree).json_schema()

    schema["$defs"]["Cat"]["properties"]["kind"].pop("enum", None)  # of pydantic 2.7

    assert schema["$defs"]["Cat"] == {
        "title": "Cat",
        "description": "A cat.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "kind": {"const": "cat", "default": "cat", "title": "Kind", "type": "string"},
            "born": {
                "anyOf": [{"format": "date", "type": "string"}, {"type": "null"}],
                "default": None,
                "title": "Born",
            },
        },
    }
    assert schema["$defs"]["StartEvent"]["additionalProperties"] is True
    called = tree["$defs"]["Tree"]["properties"]["called"]
    assert called["description"] == "what it is called"
    assert "_depth" not in tree["$defs"]["Tree"]["properties"]


def test_generic_event_is_validated_by_its_argument():
    """``Boxed[int]`` holds an int; without an argument anything goes."""
    assert TypeAdapter(Boxed[int]).validate_python({"value": "3"}).value == 3
    assert TypeAdapter(Boxed[list[int]]).validate_python({"value": ["3"]}).value == [3]
    assert TypeAdapter(Boxed[int]).validate_python(Boxed(value=3)).value == 3
    assert TypeAdapter(Boxed).validate_python({"value": "x"}).value == "x"
    with pytest.raises(ValidationError, match="valid integer"):
        TypeAdapter(Boxed[int]).validate_python({"value": "x"})


@pytest.mark.parametrize("name", ["json", "copy", "model_dump", "schema", "_under"])
def test_field_may_have_any_name(name):
    """Names that a model of pydantic could not have work in an event."""
    made = type("Named", (Event,), {"__annotations__": {"n": int}, "n": attrs.field(alias=name)})
    adapter = TypeAdapter(made)

    assert adapter.validate_python({name: 3}).n == 3
    assert adapter.dump_python(made(**{name: 3})) == {name: 3}


def test_event_class_is_collected_after_its_model():
    """P18: the schema keeps no event class alive."""

    def make() -> weakref.ref[type]:
        made = type("Passing", (Event,), {"__annotations__": {"n": int}})
        TypeAdapter(made).validate_python({"n": 1})
        return weakref.ref(made)

    reference = make()
    gc.collect()

    assert reference() is None


def test_fastapi_takes_and_returns_events():
    """An event in a model is a body; an event alone is one with Body(); both are described."""
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    app = fastapi.FastAPI()

    def take(visit: Visit) -> Dog:
        return Dog(size=len(visit.others) + 1)

    def give(dog: Annotated[Dog, fastapi.Body()]) -> Visit:
        return Visit(pet=dog)

    take.__annotations__ = {"visit": Visit, "return": Dog}
    give.__annotations__ = {"dog": Annotated[Dog, fastapi.Body()], "return": Visit}
    app.post("/take")(take)
    app.post("/give")(give)
    client = testclient.TestClient(app)

    assert client.post("/take", json={"pet": {"kind": "cat"}}).json() == {"kind": "dog", "size": 1}
    assert client.post("/take", json={"pet": {"kind": "dog", "size": -1}}).status_code == 422
    assert client.post("/give", json={"size": 4}).json()["pet"] == {"kind": "dog", "size": 4}
    assert {"Cat", "Dog", "Visit"} <= client.get("/openapi.json").json()["components"][
        "schemas"
    ].keys()
