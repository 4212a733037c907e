"""Replies of a declared class: the schema for the model, and the text as a value."""

from __future__ import annotations

import dataclasses
from typing import Annotated, TypedDict

import anyio
import attrs
import jsonschema
import msgspec
import pydantic
import pytest

from sluicegate import Event, StartEvent, StopEvent, Workflow, step
from sluicegate.llms import (
    ChatMessage,
    CompletionResponse,
    MockLLM,
    OutputError,
    Usage,
    read_response,
    response_format,
    structured_chat,
)


class Verdict(Event):
    """What the reviewer says."""

    is_good: bool
    reasons: Annotated[list[str], "One sentence each"] = attrs.field(factory=list)


class Model(pydantic.BaseModel):
    """What the reviewer says."""

    is_good: bool
    reasons: list[str] = []


class Struct(msgspec.Struct):
    is_good: bool
    reasons: list[str] = []


@attrs.frozen
class Plain:
    is_good: bool
    reasons: list[str] = attrs.field(factory=list)


@dataclasses.dataclass
class Data:
    is_good: bool
    reasons: list[str] = dataclasses.field(default_factory=list)


class Typed(TypedDict):
    is_good: bool
    reasons: list[str]


@dataclasses.dataclass
class Tree:
    is_good: bool
    reasons: list[str]
    parts: list[Tree] = dataclasses.field(default_factory=list)


KINDS = [Verdict, Model, Struct, Plain, Data, Typed, Tree]
GOOD = '{"is_good": true, "reasons": ["short"]}'


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_class_is_asked_for_and_read(kind):
    """The schema is an object at its root, and the value is of the class."""
    option = response_format(kind)
    schema = option["json_schema"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"is_good": True, "reasons": []}, schema)
    made = read_response(kind, GOOD)

    assert (option["type"], option["json_schema"]["name"]) == ("json_schema", kind.__name__)
    assert (schema["type"], "is_good" in schema["properties"]) == ("object", True)
    assert "$ref" not in schema
    if kind is Typed:
        assert made == {"is_good": True, "reasons": ["short"]}
    else:
        assert type(made) is kind
        assert (made.is_good, made.reasons) == (True, ["short"])


def test_a_class_that_contains_itself():
    """Its schema refers to its definition, and its values are nested."""
    schema = response_format(Tree)["json_schema"]["schema"]
    deep = {"is_good": True, "reasons": [], "parts": [{"is_good": False, "reasons": []}]}
    jsonschema.validate(deep, schema)

    assert read_response(Tree, msgspec.json.encode(deep).decode()).parts[0].is_good is False


@pytest.mark.parametrize("kind", [int, list[Verdict], Verdict | None, dict[str, int]])
def test_what_has_no_fields_is_refused(kind):
    """Models reply with objects; the message shows the class to write."""
    with pytest.raises(
        TypeError, match=r"a model cannot reply with .*; expected a class with fields"
    ):
        response_format(kind)


@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f" ```\n{GOOD}```\n", GOOD])
def test_a_fence_around_the_reply_is_ignored(text):
    """Many models put their JSON into Markdown."""
    assert read_response(Model, text).is_good
    assert read_response(Model, CompletionResponse(text=text)).is_good


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            Model,
            "Good!",
            "the reply is not the JSON of a Model: JSON is malformed: invalid character",
        ),
        (Model, "[" * 100_000, "the reply is not the JSON of a Model: "),
        (Model, "[]", "the reply is not a Model: Input should be an object"),
        (Verdict, "[]", "the reply is not a Verdict: Verdict was given []; expected an object"),
        (Verdict, '{"is_good": "yes"}', "Verdict.is_good is 'yes', which is not bool"),
        (Verdict, '{"is_good": true, "more": 1}', "Verdict has no field 'more'"),
        (
            Struct,
            '{"is_good": true, "reasons": [1]}',
            "Expected `str`, got `int` - at `$.reasons[0]`",
        ),
        (Plain, "{}", "the reply is not a Plain: Object missing required field `is_good`"),
    ],
)
def test_a_faulty_reply_is_an_error_with_its_place(kind, text, message):
    """The error names the class, the path and what was expected, for the model and for people."""
    with pytest.raises(OutputError) as caught:
        read_response(kind, text)

    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.anyio
async def test_the_model_is_told_what_is_wrong():
    """A faulty reply and its error are put before the model, once; the usage is that of both replies."""
    llm = MockLLM(['{"is_good": 1}', f"```json\n{GOOD}\n```"])
    messages = [ChatMessage(content="Is it good?")]
    made = await structured_chat(llm, Verdict, messages, temperature=0)

    assert (made.value.is_good, made.response.text) == (True, f"```json\n{GOOD}\n```")
    assert [kwargs["temperature"] for kwargs in llm.kwargs] == [0, 0]
    assert all(k["response_format"] == response_format(Verdict) for k in llm.kwargs)
    assert len(messages) == 1
    first, second = llm.requests
    assert first == tuple(messages)
    assert second[1] == ChatMessage("assistant", '{"is_good": 1}')
    assert second[2].text == (
        "the reply is not a Verdict: Verdict.is_good is 1, which is not bool: Expected `bool`, got "
        "`int`. Reply with the corrected JSON only."
    )
    assert made.usage == Usage(
        prompt_tokens=3 + len(second[2].text.split()),
        completion_tokens=2 + 6,
        total_tokens=3 + len(second[2].text.split()) + 8,
    )


@pytest.mark.anyio
async def test_the_last_fault_is_raised():
    """After so many attempts the error of the last reply is raised, and no further request is made."""
    llm = MockLLM(["one", "two", "three", GOOD])
    with pytest.raises(OutputError, match="got 'three'"):
        await structured_chat(llm, Model, [ChatMessage(content="x")], attempts=3)

    assert len(llm.requests) == 3
    with pytest.raises(ValueError, match="attempts is 0; expected a number of at least 1"):
        await structured_chat(llm, Model, [], attempts=0)
    error = OSError("away")
    with pytest.raises(OSError, match="away") as caught:
        await structured_chat(MockLLM([error]), Model, [ChatMessage(content="x")])
    assert caught.value is error


@pytest.mark.anyio
async def test_cancelled_it_makes_no_further_request():
    """A cancellation during a request ends the attempts."""
    llm = MockLLM(["one two three", GOOD], delay=1)
    with anyio.move_on_after(0.001) as scope:
        await structured_chat(llm, Model, [ChatMessage(content="x")])

    assert scope.cancelled_caught
    assert len(llm.requests) == 1


@pytest.mark.anyio
async def test_a_step_returns_the_model_s_event():
    """An event that a model has made is routed as any other."""

    class Review(Workflow[list[str]]):
        @step
        async def ask(self, ev: StartEvent) -> Verdict:
            made = await structured_chat(MockLLM([GOOD]), Verdict, [ChatMessage(content=ev.text)])
            return made.value

        @step
        async def report(self, ev: Verdict) -> StopEvent:
            return StopEvent(result=ev.reasons)

    assert await Review().run(text="x") == ["short"]
