"""Idioms of pydantic, dataclasses and msgspec in an event class: translated, or refused with the line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from typing import Annotated, Any, ClassVar, Literal

import attrs
import msgspec
import pydantic
import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    PrivateAttr,
    StringConstraints,
    computed_field,
    conint,
    constr,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from sluicegate import Event, StartEvent
from sluicegate._data.from_outside import decode_event
from tests.helpers import steady_id


def refusal(make):
    """Return why a class is refused when it is made."""
    with pytest.raises(TypeError) as caught:
        make()
    return str(caught.value)


# -- what attrs has a word for -------------------------------------------------------------------------


def test_options_of_field_that_attrs_has_mean_what_they_say():
    """pydantic's default, default_factory, alias, repr and description are those of the event."""

    class Parcel(Event):
        needed: int = Field(...)
        weight: int = Field(3, description="in grams", title="Weight")
        tags: list[str] = Field(default_factory=list)
        kind: str = Field(default="box", alias="type")
        secret: str = Field("s", repr=False)
        copied: list[int] = Field(default=[1])

    parcel = Parcel(needed=1, type="tube")

    assert parcel.to_dict() == {
        "needed": 1,
        "weight": 3,
        "tags": [],
        "kind": "tube",
        "secret": "s",
        "copied": [1],
    }
    assert "secret" not in repr(parcel)
    assert Parcel(needed=1).tags is not parcel.tags
    assert Parcel(needed=1).copied is not parcel.copied
    assert attrs.fields(Parcel).weight.metadata == {"description": "in grams", "title": "Weight"}
    with pytest.raises(TypeError, match="Parcel lacks 'needed'"):
        Parcel()


def test_field_in_an_annotation_means_the_same():
    """``Annotated[int, Field(...)]`` gives what ``= Field(...)`` gives, and a plain default counts."""

    class Parcel(Event):
        weight: Annotated[int, Field(description="in grams")]
        tags: Annotated[list[str], Field(default_factory=list)]
        count: Annotated[int, Field(description="how many")] = 7
        size: Annotated[int, Field(description="in cm")] = attrs.field(default=2)

    parcel = Parcel(weight=1)

    assert parcel.to_dict() == {"weight": 1, "tags": [], "count": 7, "size": 2}
    assert attrs.fields(Parcel).count.metadata["description"] == "how many"
    assert attrs.fields(Parcel).size.metadata["description"] == "in cm"


@pytest.mark.skipif(
    not hasattr(pydantic.fields.FieldInfo, "default_factory_takes_validated_data"),
    reason="this pydantic has no such factories",
)
def test_factory_that_takes_the_fields_before_it():
    """A default_factory with an argument is given the fields that are set already."""

    class Parcel(Event):
        width: int
        height: int = Field(default_factory=lambda fields: 2 * fields["width"])

    assert Parcel(width=3).height == 6
    assert Parcel(width=3, height=1).height == 1


def test_fields_of_dataclasses_and_msgspec_mean_what_they_say():
    """The same for dataclasses.field and msgspec.field."""

    class Parcel(Event):
        weight: int = dataclasses.field(default=3, metadata={"unit": "g"})
        tags: list[str] = dataclasses.field(default_factory=list, repr=False)
        state: int = dataclasses.field(default=0, init=False)
        size: int = msgspec.field(default=1)
        parts: list[int] = msgspec.field(default_factory=list)

    parcel = Parcel()

    assert parcel.to_dict() == {"weight": 3, "tags": [], "state": 0, "size": 1, "parts": []}
    assert "tags" not in repr(parcel)
    assert Parcel().tags is not parcel.tags
    assert Parcel().parts is not parcel.parts
    assert attrs.fields(Parcel).weight.metadata["unit"] == "g"
    with pytest.raises(TypeError, match="Parcel has no field 'state'"):
        Parcel(state=1)


def test_translated_class_has_subclasses_and_comes_from_outside():
    """A translated field is inherited, and decoded as its annotation says."""

    class Base(Event):
        tags: Annotated[list[str], Field(description="words")] = Field(default_factory=list)

    class Parcel(Base):
        weight: int = Field(0)

    assert decode_event(Parcel, {"tags": ["a"]}).to_dict() == {"tags": ["a"], "weight": 0}
    assert Parcel().tags == []


# -- what it has no word for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("note", "default", "line"),
    [
        (int, Field(gt=0), "`n: int = attrs.field(validator=attrs.validators.gt(0))`"),
        (
            int,
            Field(3, ge=1),
            "`n: int = attrs.field(default=3, validator=attrs.validators.ge(1))`",
        ),
        (
            list[int],
            Field(default_factory=list, max_length=3),
            "`n: list[int] = attrs.field(factory=list, validator=attrs.validators.max_len(3))`",
        ),
        (
            int | None,
            Field(None, gt=0, lt=9),
            (
                "`n: int | None = attrs.field(default=None, validator=attrs.validators.optional("
                "[attrs.validators.gt(0), attrs.validators.lt(9)]))`"
            ),
        ),
        (
            str,
            Field(pattern="^a"),
            "`n: str = attrs.field(validator=attrs.validators.matches_re('^a', func=re.search))`",
        ),
        (int, Field(multiple_of=2), "`n: int = attrs.field(validator=check_n)`, where check_n("),
        (int, Field(strict=True), "`n: int`, and `validate=True` behind the name of the base"),
        (int, Field(exclude=True), "`n: int`; leave 'n' out where the event is written"),
        (int, Field(validation_alias="m"), "`n: int = attrs.field(alias='m')`"),
        (int, Field(serialization_alias="m"), "`n: int`"),
        (
            int | str,
            Field(discriminator="k"),
            "`n: Annotated[int | str, Field(discriminator='k')]`",
        ),
        (
            Annotated[int, Field(gt=0)],
            attrs.NOTHING,
            "`n: int = attrs.field(validator=attrs.validators.gt(0))`",
        ),
        (
            Annotated[int, Field(gt=0)],
            5,
            "`n: int = attrs.field(default=5, validator=attrs.validators.gt(0))`",
        ),
        (
            list[Annotated[int, Field(gt=0)]],
            attrs.NOTHING,
            "`n: list[int] = attrs.field(validator=check_n)`, where check_n(event, field, value)",
        ),
        (PositiveInt, attrs.NOTHING, "`n: int = attrs.field(validator=attrs.validators.gt(0))`"),
        (conint(le=4), attrs.NOTHING, "`n: int = attrs.field(validator=attrs.validators.le(4))`"),
        (
            constr(min_length=2, strip_whitespace=True),
            attrs.NOTHING,
            "`n: str = attrs.field(converter=str.strip, validator=attrs.validators.min_len(2))`",
        ),
        (
            Annotated[str, StringConstraints(to_lower=True)],
            attrs.NOTHING,
            "`n: str = attrs.field(converter=str.lower)`",
        ),
        (
            Annotated[int, AfterValidator(abs)],
            attrs.NOTHING,
            "`n: int = attrs.field(converter=convert_n)`",
        ),
        (
            Annotated[int, BeforeValidator(int)],
            attrs.NOTHING,
            "`n: int = attrs.field(converter=convert_n)`",
        ),
        (
            Annotated[int, PlainSerializer(str)],
            attrs.NOTHING,
            "`n: int = attrs.field(converter=convert_n)`",
        ),
        (int, dataclasses.field(default=1, compare=False), "`n: int = attrs.field(default=1)`"),
        (int, dataclasses.field(kw_only=False), "`n: int`"),
        (int, msgspec.field(name="m"), "`n: int = attrs.field(alias='m')`"),
        (dataclasses.InitVar[int], attrs.NOTHING, "a field, or a function that makes the event"),
        (dataclasses.KW_ONLY, attrs.NOTHING, "the class without that line"),
    ],
    ids=steady_id,
)
def test_option_without_a_counterpart_is_refused_with_the_line(note, default, line):
    """P13: what an event would not do is refused when its class is made; the line to write is told."""
    body = {"__annotations__": {"n": note}}
    if default is not attrs.NOTHING:
        body["n"] = default

    message = refusal(lambda: type("Parcel", (Event,), body))

    assert message.startswith("Parcel.n ")
    assert f"expected {line}" in message


def test_annotations_as_text_are_looked_into():
    """With postponed annotations the same is refused, with names of a function body too."""
    Positive = Annotated[int, Field(gt=0)]

    with pytest.raises(TypeError) as caught:

        class Parcel(Event):
            local: Positive
            plain: Annotated[str, Field(max_length=3)]
            later: NotYet  # noqa: F821

    message = str(caught.value)
    assert "Parcel.plain has Field(max_length=3)" in message
    assert "Parcel.local has Field(gt=0)" in message


def test_methods_of_pydantic_are_refused():
    """P13: a method that pydantic would call is never called here, so each is refused by name."""

    def make():
        class Parcel(Event):
            n: int = 0
            _cache: dict[str, int] = PrivateAttr(default_factory=dict)
            _bare = PrivateAttr(3)
            model_config = ConfigDict(extra="allow", frozen=True)

            @field_validator("n")
            @classmethod
            def positive(cls, value: int) -> int:
                return value

            @model_validator(mode="after")
            def whole(self) -> Any:
                return self

            @computed_field
            @property
            def double(self) -> int:
                return 2 * self.n

            @field_serializer("n")
            def shown(self, value: int) -> str:
                return str(value)

            @model_serializer
            def all_shown(self) -> dict[str, Any]:
                return {}

            def model_post_init(self, context: Any) -> None: ...

    message = refusal(make)

    for part in (
        "Parcel._cache is a PrivateAttr; expected `_cache: dict[str, int] = attrs.field(factory=dict)`",
        "Parcel._bare is a PrivateAttr; expected `_bare: ... = 3`",
        "Parcel.model_config is pydantic's",
        "`class Parcel(Event, open=True):`",
        "Parcel.positive has @field_validator",
        "`n: int = attrs.field(converter=positive)`",
        "Parcel.whole has @model_validator",
        "`def __attrs_post_init__(self) -> None:`",
        "Parcel.double has @computed_field",
        "Parcel.shown has @field_serializer",
        "Parcel.all_shown has @model_serializer",
        "Parcel.model_post_init is never called",
    ):
        assert part in message


def test_old_decorators_of_pydantic_are_refused():
    """The spellings of pydantic 1 mean as little as the new ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def make():
            class Parcel(Event):
                n: int = 0

                @pydantic.validator("n")
                def positive(cls, value: int) -> int:
                    return value

                @pydantic.root_validator(pre=True)
                def whole(cls, values: Any) -> Any:
                    return values

                class Config:
                    extra = "allow"

        message = refusal(make)

    assert "Parcel.positive has @validator" in message
    assert "Parcel.whole has @root_validator" in message
    assert "Parcel.Config is pydantic's" in message


def test_hooks_of_dataclasses_are_refused():
    """``__post_init__`` has another name in attrs."""

    def make():
        class Parcel(Event):
            n: int = 0

            def __post_init__(self) -> None: ...

    assert refusal(make) == (
        "Parcel.__post_init__ is never called; expected `def __attrs_post_init__(self) -> None:`"
    )


@pytest.mark.parametrize("options", [{}, {"frozen": True}])
def test_decorator_of_dataclasses_changes_nothing(options):
    """Under ``@dataclass`` an event keeps its constructor, its identity and its repr."""

    @dataclasses.dataclass(**options)
    class Parcel(Event):
        n: int
        tags: list[str] = dataclasses.field(default_factory=list)

    one, other = Parcel(n=1), Parcel(n=1)

    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "Parcel(n=1, tags=[])"
    assert one.tags is not other.tags
    with pytest.raises(AttributeError):
        one.n = 2
    with pytest.raises(TypeError, match="Parcel lacks 'n'"):
        Parcel()


@pytest.mark.parametrize("alias", ["class", "from", "a-b", "@id"])
@pytest.mark.parametrize("field", [Field, attrs.field])
def test_alias_that_is_no_keyword_is_refused(alias, field):
    """The constructor takes fields by keyword, so an alias has to be one."""
    message = refusal(
        lambda: type("Parcel", (Event,), {"__annotations__": {"n": int}, "n": field(alias=alias)})
    )

    assert message.startswith(f"Parcel.n has the alias {alias!r}, no keyword argument; expected ")


@pytest.mark.parametrize("value", [Field(3), dataclasses.field(default=3), attrs.field(default=3)])
def test_field_without_an_annotation_is_refused(value):
    """Such a line is no field; with attrs it even made the annotated fields disappear."""
    body = {"__annotations__": {"a": int}, "b": value}

    message = refusal(lambda: type("Parcel", (Event,), body))

    assert message == "Parcel.b has no annotation, so it is no field; expected `b: ... = ...`"


def test_event_that_is_a_model_too_is_refused():
    """One class cannot be both; as a field the model works."""

    class Model(BaseModel):
        n: int = 0

    message = refusal(lambda: type("Parcel", (Event, Model), {"__annotations__": {"m": int}}))

    assert message == (
        "Parcel is an event and a model of pydantic; expected one: `class Parcel(Event):` with a "
        "field of class Model"
    )


def test_what_only_looks_like_pydantic_is_left_alone():
    """Names that mean something to pydantic are free where they are the event's."""

    class Settings:
        depth = 3

    class Parcel(Event):
        model_config: dict[str, Any] = {}
        kind: Literal["a", "b"] = "a"
        note: Annotated[str, "a mark"] = ""
        limit: ClassVar[int] = 3
        dict: dict[str, int] = {}
        json: str = "{}"
        schema: str = ""
        Config = Settings

    parcel = Parcel(model_config={"a": 1})

    assert parcel.model_config == {"a": 1}
    assert (parcel.dict, parcel.json, parcel.Config.depth) == ({}, "{}", 3)


def test_pydantic_is_not_imported_by_event_classes():
    """P20: its objects are recognised by the names of their classes."""
    code = (
        "import sys, dataclasses\n"
        "from sluicegate import Event\n"
        "class E(Event):\n"
        "    n: int = dataclasses.field(default=3)\n"
        "assert E().n == 3\n"
        "try:\n"
        "    E().model_dump()\n"
        "except AttributeError as error:\n"
        "    assert 'to_dict' in str(error)\n"
        "print(sorted(m for m in sys.modules if m.startswith(('pydantic', 'annotated_types'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("[]\n", "")


# -- methods -------------------------------------------------------------------------------------------------


class Plain(Event):
    text: str


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("model_dump", "event.to_dict()"),
        ("dict", "event.to_dict()"),
        ("model_dump_json", "msgspec.json.encode(event.to_dict())"),
        ("json", "msgspec.json.encode(event.to_dict())"),
        ("copy", "attrs.evolve(event, field=...)"),
        ("model_copy", "attrs.evolve(event, field=...)"),
        ("items", "event.to_dict().items()"),
        ("model_validate", "sluicegate.decode_event(Plain, data)"),
        ("parse_obj", "sluicegate.decode_event(Plain, data)"),
        ("model_validate_json", "sluicegate.decode_event(Plain, msgspec.json.decode(text))"),
        ("model_construct", "Plain(field=...)"),
        ("model_json_schema", "pydantic.TypeAdapter(Plain).json_schema()"),
        ("model_fields", "attrs.fields(Plain)"),
    ],
)
@pytest.mark.parametrize("owner", [Plain, Plain(text="a")], ids=["class", "event"])
def test_methods_of_pydantic_say_what_to_call(owner, name, line):
    """P13: the error names the call; hasattr() finds nothing, so other libraries are not misled."""
    with pytest.raises(AttributeError) as caught:
        getattr(owner, name)

    assert str(caught.value) == f"Plain is an event and has no {name!r}; expected `{line}`"
    assert not hasattr(owner, name)


def test_advice_gives_way_to_what_a_class_has():
    """A field, an open field, a method and a mixin under such a name are found."""

    class Mixin:
        def copy(self) -> str:
            return "copied"

    class Own(Event, Mixin):
        json: str = "{}"

        def dict(self) -> str:
            return "own"

    assert (Own().json, Own().dict(), Own().copy()) == ("{}", "own", "copied")
    assert StartEvent(json=1, items=2).json == 1
