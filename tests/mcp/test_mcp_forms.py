"""The form of a question, as flat as MCP allows, and the answer that its contents make."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import attrs
import pytest
from mcp.types import methods

from sluicegate import Event, HumanResponseEvent, InputRequiredEvent, OpenQuestion
from sluicegate.mcp._forms import form_of


class Kind(Enum):
    OIL = "oil"
    WATER = "water"


class Level(Enum):
    LOW = 1
    HIGH = 2


@attrs.frozen
class Size:
    width: int
    height: int


class Picture(HumanResponseEvent):
    """An answer with a field of every kind."""

    title: str
    kind: Kind
    level: Level
    size: Size
    price: Decimal
    owner: str | None
    shown: bool = True
    weight: float = 1.5
    tags: list[Kind] = []
    numbers: list[int] = [1]
    note: str | None = None
    style: Literal["plain", "fine"] = "plain"
    anything: Any = None


class Ask(InputRequiredEvent):
    pass


class Yes(HumanResponseEvent):
    comment: str = ""


class No(HumanResponseEvent):
    reason: str


class Go(HumanResponseEvent):
    pass


def form(*answers, event=None, error=""):
    """Return the form of a question, after a check against the schema of the protocol."""
    question = OpenQuestion("q1", event or Ask(prompt="?"), 0.0, answers)
    made = form_of(question, error)
    result = {
        "resultType": "input_required",
        "inputRequests": {
            "q1": {
                "method": "elicitation/create",
                "params": {
                    "mode": "form",
                    "message": made.message,
                    "requestedSchema": made.schema,
                },
            }
        },
    }
    assert methods.serialize_server_result("tools/call", "2026-07-28", result)
    return made


def test_each_field_has_the_form_that_the_protocol_has_for_it():
    """Strings, numbers, booleans and choices are plain; the rest is text with JSON, which the description shows."""
    schema = form(Picture).schema
    fields = schema["properties"]

    assert fields["title"] == {"type": "string"}
    assert fields["kind"] == {"type": "string", "enum": ["oil", "water"]}
    assert fields["level"] == {"type": "string", "description": 'JSON that fits {"enum": [1, 2]}'}
    assert fields["size"]["type"] == "string"
    assert '"width": {"type": "integer"}' in fields["size"]["description"]
    assert fields["price"]["type"] == "string"
    assert fields["shown"] == {"type": "boolean", "default": True}
    assert fields["weight"] == {"type": "number", "default": 1.5}
    assert fields["tags"]["items"] == {"type": "string", "enum": ["oil", "water"]}
    assert fields["numbers"]["type"] == "string"
    assert fields["note"] == {"type": "string"}
    assert fields["style"] == {"type": "string", "enum": ["plain", "fine"], "default": "plain"}
    assert schema["required"] == ["title", "kind", "level", "size", "price"]


def test_the_contents_of_a_form_make_the_answer():
    """JSON texts are read, and fields that may be null may be left out."""
    given = {
        "title": "a",
        "kind": "oil",
        "level": "2",
        "size": '{"width": 3, "height": 4}',
        "price": "1.50",
        "tags": ["water"],
        "numbers": "[5, 6]",
        "note": None,
    }
    answer = form(Picture).answer(given)

    assert (answer.kind, answer.level, answer.size) == (Kind.OIL, Level.HIGH, Size(3, 4))
    assert (answer.price, answer.tags, answer.numbers) == (Decimal("1.50"), [Kind.WATER], [5, 6])
    assert (answer.owner, answer.note, answer.shown) == (None, None, True)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"size": "wide"},
            "size is not JSON (Expecting value: line 1 column 1 (char 0)); expected a value as its description shows it",
        ),
        ({"size": '{"width": 3}'}, "Object missing required field `height`"),
        ({"kind": "ink"}, "Invalid enum value 'ink'"),
        ({"title": None}, "Picture lacks 'title'"),
        ({"colour": "red"}, "Picture has no field 'colour'"),
    ],
)
def test_contents_that_do_not_fit_are_refused_with_the_field(changed, text):
    """The error is what the client is asked again with."""
    given = {
        "title": "a",
        "kind": "oil",
        "level": "1",
        "size": '{"width": 3, "height": 4}',
        "price": "1",
    }

    with pytest.raises(TypeError) as caught:
        form(Picture).answer({**given, **changed})

    assert text in str(caught.value)


def test_several_classes_of_answers_are_a_choice():
    """The form has the fields of all of them, and one field says which is meant."""
    made = form(Yes, No)

    assert made.schema["properties"]["event"]["enum"] == ["Yes", "No"]
    assert made.schema["required"] == ["event"]
    assert type(made.answer({"event": "Yes", "reason": "left over"})) is Yes
    assert made.answer({"event": "No", "reason": "rain"}).reason == "rain"
    with pytest.raises(TypeError, match="event is None; expected one of Yes, No"):
        made.answer({"reason": "rain"})
    with pytest.raises(TypeError, match="No lacks 'reason'"):
        made.answer({"event": "No"})


def test_an_answer_without_fields_is_a_text():
    """A plain answer has a response; one of a class without fields may have it."""
    plain, empty = form(HumanResponseEvent), form(Go)

    assert plain.schema["required"] == ["response"]
    assert plain.answer({"response": "soup"}).response == "soup"
    assert "required" not in empty.schema
    assert type(empty.answer({})) is Go
    assert form().answer({"response": "x"}).response == "x"


class Approval(InputRequiredEvent):
    amount: int
    message: str = ""


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Ask(prompt="Soup? "), "Soup?"),
        (Ask(prefix="Soup?", course=1), 'Soup?\n{"course": 1}'),
        (Approval(amount=5), 'Approval: {"amount": 5, "message": ""}'),
        (Approval(amount=5, message="Pay?"), 'Pay?\n{"amount": 5}'),
    ],
)
def test_the_message_is_the_text_of_the_question_and_its_other_fields(event, text):
    """A question has its text in a field of a usual name; without one, all fields are shown."""
    assert form(Yes, event=event).message == text
    assert form(Yes, event=event, error="it is late").message == f"it is late\n{text}"


class Parcel(Event):
    weight: int


def test_a_wait_without_a_question_shows_its_class():
    """The message says which event the run waits for."""
    made = form_of(OpenQuestion("q1", None, 0.0, (Parcel, Yes)))

    assert made.message == "The run waits for Parcel or Yes."
