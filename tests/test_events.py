"""Events: classes made from annotations alone, and the traps that attrs leaves open."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import gc
import pickle
import typing
import uuid
import weakref
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError

from sluicegate import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    InternalEvent,
    StartEvent,
    StepStateChanged,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._annotations import check_types
from sluicegate._data.from_outside import decode_event


T = TypeVar("T")


class Plain(Event):
    text: str
    count: int = 0


class Deeper(Plain):
    flag: bool = False


class Empty(Event):
    pass


class Boxed(Event, Generic[T]):
    value: T


class Node(Event):
    """Names a class that comes later, and itself."""

    later: Later | None = None
    parent: Node | None = None


class Later(Event):
    n: int


# -- the constructor ---------------------------------------------------------------------------------


def test_annotations_are_the_fields():
    """A class with annotations takes exactly these, by keyword, with their defaults."""
    event = Plain(text="a")

    assert (event.text, event.count) == ("a", 0)
    assert [field.name for field in attrs.fields(Plain)] == ["text", "count"]


def test_fields_are_keyword_only():
    """Positional arguments would change meaning with the order of the annotations."""
    with pytest.raises(TypeError, match="positional"):
        Plain("a")
    with pytest.raises(TypeError, match="positional"):
        StartEvent("a")


def test_fields_are_inherited_and_required_ones_may_follow_defaults():
    """Keyword only, so that a subclass may add a required field."""

    class Further(Deeper):
        needed: int

    event = Further(text="a", needed=1)

    assert event.to_dict() == {"text": "a", "count": 0, "flag": False, "needed": 1}
    assert isinstance(event, Plain)


def test_subclass_without_fields_of_its_own_stays_strict():
    """A class whose parent declares fields refuses unknown ones as its parent does."""

    class Same(Plain):
        pass

    with pytest.raises(TypeError, match="Same has no field 'other'"):
        Same(text="a", other=1)


def test_field_of_a_parent_may_be_redefined():
    """The nearest annotation counts."""

    class Stricter(Plain):
        count: int = 7

    assert Stricter(text="a").count == 7
    assert Plain(text="a").count == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Plain(),
            "Plain lacks 'text'; expected Plain(text=..., count=...)",
        ),
        (
            lambda: Plain(texd="a"),
            "Plain has no field 'texd', did you mean 'text'? expected Plain(text=..., count=...)",
        ),
        (
            lambda: Plain(text="a", zebra=1),
            "Plain has no field 'zebra'; expected Plain(text=..., count=...)",
        ),
        (
            lambda: Deeper(flag=True),
            "Deeper lacks 'text'; expected Deeper(text=..., count=..., flag=...)",
        ),
        (
            lambda: WorkflowFailedEvent(),
            (
                "WorkflowFailedEvent lacks 'exception'; expected WorkflowFailedEvent(exception=..., "
                "step_name=...)"
            ),
        ),
    ],
)
def test_wrong_constructor_call_says_what_was_meant(make, message):
    """P13: the message names the class, the field and the fix."""
    with pytest.raises(TypeError) as caught:
        make()

    assert str(caught.value) == message


def test_several_missing_fields_are_named_at_once():
    """P13: all that is lacking is in one message."""

    class Two(Event):
        a: int
        b: int

    with pytest.raises(TypeError, match=r"Two lacks 'a', 'b'; expected Two\(a=\.\.\., b=\.\.\.\)"):
        Two()


def test_type_error_of_a_converter_is_not_mistaken_for_a_wrong_call():
    """A failure deeper down arrives as itself."""
    error = TypeError("deep inside")

    def convert(value: Any) -> Any:
        raise error

    class Converted(Event):
        n: int = attrs.field(converter=convert)

    with pytest.raises(TypeError) as caught:
        Converted(n=1)

    assert caught.value is error


def test_options_of_attrs_fields_work():
    """Factories, aliases, converters, validators and repr are attrs' own."""

    class Rich(Event):
        tags: list[str] = attrs.field(factory=list)
        name: str = attrs.field(alias="called", default="?")
        n: int = attrs.field(converter=int, default=0)
        secret: str = attrs.field(repr=False, default="hidden")
        size: int = attrs.field(default=1, validator=attrs.validators.gt(0))

    event = Rich(called="x", n="3")

    assert (event.name, event.n, event.tags) == ("x", 3, [])
    assert Rich().tags is not Rich().tags
    assert "hidden" not in repr(event)
    with pytest.raises(ValueError, match="size"):
        Rich(size=0)
    with pytest.raises(TypeError, match="Rich has no field 'name'"):
        Rich(name="x")


def test_post_init_runs():
    """attrs' hook is called when all fields are set."""
    seen = []

    class Hooked(Event):
        n: int

        def __attrs_post_init__(self) -> None:
            seen.append(self.n)

    class HookedEmpty(Event):
        def __attrs_post_init__(self) -> None:
            seen.append("empty")

    Hooked(n=4)
    HookedEmpty(anything=1)

    assert seen == [4, "empty"]


# -- the traps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [[1], {"a": 1}, {1}, bytearray(b"a")])
def test_mutable_default_is_not_shared(default):
    """Each event has its own copy, as with pydantic and unlike bare attrs."""
    made = type("Made", (Event,), {"__annotations__": {"value": type(default)}, "value": default})

    one, other = made(), made()
    one.value.clear()

    assert other.value == default
    assert other.value is not default
    assert len(default) == 1


def test_mutable_default_inside_an_attrs_field_is_not_shared():
    """The same where the default is written as attrs.field(default=[])."""

    class Listed(Event):
        tags: list[str] = attrs.field(default=[])

    Listed().tags.append("a")

    assert Listed().tags == []


def test_mutable_default_of_a_parent_is_not_shared():
    """Inherited fields are as safe as one's own."""

    class Listed(Event):
        tags: list[str] = []

    class More(Listed):
        n: int = 0

    More().tags.append("a")

    assert More().tags == []
    assert Listed().tags == []


def test_private_field_is_no_argument():
    """``_x: int = 0`` is state of the event, not a keyword called x."""

    class Private(Event):
        shown: int
        _cache: int = 5

    event = Private(shown=1)

    assert event._cache == 5
    for name in ("cache", "_cache"):
        with pytest.raises(TypeError, match=f"Private has no field '{name}'"):
            Private(shown=1, **{name: 2})


def test_class_variables_are_no_fields():
    """ClassVar belongs to the class."""

    class Marked(Event):
        kind: ClassVar[str] = "marked"
        n: int

    assert [field.name for field in attrs.fields(Marked)] == ["n"]
    assert Marked(n=1).kind == "marked"


def test_methods_and_properties_work():
    """An event is an ordinary object."""

    class Rich(Event):
        n: int

        @property
        def double(self) -> int:
            return 2 * self.n

        def plus(self, m: int) -> int:
            return self.n + m

    class Richer(Rich):
        @property
        def double(self) -> int:
            return super().double + 1

    assert Richer(n=2).double == 5
    assert Richer(n=2).plus(1) == 3


def test_events_are_compared_and_hashed_by_identity():
    """Two events with equal fields are two events."""
    one, other = Plain(text="a"), Plain(text="a")

    assert one != other
    assert one == one
    assert len({one, other}) == 2


@pytest.mark.parametrize("event", [Plain(text="a"), Empty(x=1), StopEvent(result=0)])
def test_events_cannot_be_changed(event):
    """They are passed by reference to everyone, so no one may change one."""
    name = next(iter(event))
    with pytest.raises(FrozenInstanceError):
        setattr(event, name, "b")
    with pytest.raises(FrozenInstanceError):
        event.new = 1
    with pytest.raises(FrozenInstanceError):
        delattr(event, name)


def test_frozen_error_is_an_attribute_error():
    """Caught by the name people already use."""
    with pytest.raises(AttributeError):
        Plain(text="a").text = "b"


def test_events_can_be_referred_to_weakly_and_are_collected():
    """No event keeps itself alive."""
    event = Plain(text="a")
    reference = weakref.ref(event)

    del event

    assert reference() is None


def test_event_classes_are_collected_when_dropped():
    """P18: defining an event class leaves nothing in a registry."""

    def make() -> weakref.ref[type]:
        class Passing(Event):
            n: int

        Passing(n=1)
        return weakref.ref(Passing)

    reference = make()
    gc.collect()

    assert reference() is None


def test_class_is_made_once():
    """Subclassing calls __init_subclass__ hooks once, and leaves no twin behind."""
    calls = []

    class Base(Event):
        def __init_subclass__(cls, **options: Any) -> None:
            super().__init_subclass__(**options)
            calls.append(cls)

    class Child(Base):
        n: int

    assert calls == [Child]
    assert Base.__subclasses__() == [Child]


def test_annotations_of_an_event_class_can_be_resolved():
    """typing.get_type_hints gives the fields' types, as other libraries ask for them."""
    hints = typing.get_type_hints(Node)

    assert hints["later"] == Later | None
    assert hints["parent"] == Node | None


@pytest.mark.parametrize("event", [Plain(text="a"), Empty(text=1), StopEvent(result=0)])
@pytest.mark.parametrize("name", ["text", "result", "new"])
def test_frozen_error_says_how_to_get_another_event(event, name):
    """The message names event and field, and the call that makes a changed copy."""
    kind = type(event).__name__
    for change, said in (
        (lambda: setattr(event, name, "b"), "set"),
        (lambda: delattr(event, name), "deleted"),
    ):
        with pytest.raises(FrozenInstanceError) as caught:
            change()

        assert str(caught.value).startswith(f"{kind}.{name} cannot be {said}: ")
        if kind != "Plain":
            assert f"`{kind}(**{{**event.to_dict(), {name!r}: ...}})`" in str(caught.value)
        elif name == "text":
            assert "`attrs.evolve(event, text=...)`" in str(caught.value)
        else:
            assert f"attrs.evolve: Plain has no field {name!r}" in str(caught.value)


def test_event_that_is_an_exception_can_be_raised():
    """Python sets its traceback, cause and notes; its fields are as frozen as any."""

    class Refused(Event, Exception):
        why: str

    refused = Refused(why="late")
    with pytest.raises(Refused) as caught:
        try:
            raise refused from ValueError("cause")
        except Refused as error:
            error.add_note("noted")
            raise

    assert caught.value is refused
    assert refused.__notes__ == ["noted"]
    assert refused.to_dict() == {"why": "late"}
    assert repr(refused) == "Refused(why='late')"
    with pytest.raises(FrozenInstanceError, match=r"Refused\.why cannot be set"):
        refused.why = "early"


# -- methods and properties ----------------------------------------------------------------------------------


class lazy:
    """A descriptor of another library that keeps its value in the instance."""

    def __init__(self, function):
        self.function = function

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, event, owner):
        value = event.__dict__[self.name] = self.function(event)
        return value


@pytest.mark.parametrize("cached", [functools.cached_property, lazy])
@pytest.mark.parametrize("is_open", [False, True])
def test_cached_value_is_no_field(cached, is_open):
    """A cached property is computed once, and shows in repr, to_dict, in and iteration never."""
    calls = []

    class Counted(Event, open=is_open):
        n: int

        @cached
        def double(self) -> int:
            calls.append(self.n)
            return 2 * self.n

    class Below(Counted, open=is_open):
        m: int = 0

    more = {"extra": 1} if is_open else {}
    event = Below(n=2, **more)
    fields = {"n": 2, "m": 0, **more}

    assert (event.double, event.double, calls) == (4, 4, [2])
    assert event.to_dict() == fields
    assert list(event) == list(fields)
    assert "double" not in event
    assert event.get("double") is None
    assert "double" not in repr(event)
    with pytest.raises(KeyError, match="double"):
        event["double"]
    assert attrs.evolve(event, n=3).double == 6


@pytest.mark.parametrize("name", ["get", "to_dict"])
def test_field_with_the_name_of_a_method_is_refused(name):
    """P13: such a field would hide the method, so the class is refused when it is made."""
    with pytest.raises(TypeError) as caught:
        type("Shadow", (Event,), {"__annotations__": {name: int}})

    assert str(caught.value) == (
        f"Shadow.{name} is a field, but {name} is a method of Event; expected another name: "
        f"`{name}_: ... = attrs.field(alias={name!r})`"
    )


def test_field_with_the_name_of_a_users_method_is_refused():
    """The same for methods and properties of one's own classes, inherited or beside the field."""

    class Base(Event):
        def plus(self) -> int:
            return 1

        @property
        def minus(self) -> int:
            return 1

        @staticmethod
        def times() -> int:
            return 1

        @functools.cached_property
        def power(self) -> int:
            return 1

    for name in ("plus", "minus", "times", "power"):
        with pytest.raises(TypeError, match=f"{name} is a method of Base"):
            type("Shadow", (Base,), {"__annotations__": {name: int}})
    with pytest.raises(TypeError, match=r"Both\.n is a field and a method"):

        class Both(Event):
            n: int

            def n(self) -> int:
                return 1


def test_function_as_a_default_is_no_method():
    """A field may hold a function."""

    class Calls(Event):
        call: Callable[[], int] = lambda: 3
        other: Callable[..., Any] = copy.copy
        kind: type = int

    assert (Calls().call(), Calls().other, Calls().kind) == (3, copy.copy, int)


@pytest.mark.parametrize("name", ["get", "to_dict"])
def test_open_field_hides_no_method(name):
    """Data from outside cannot take the methods of an event away."""
    event = StartEvent(**{name: 1, "a": 2})

    assert event[name] == 1
    assert event.get(name) == 1
    assert event.to_dict() == {name: 1, "a": 2}


def test_open_field_with_the_name_of_a_users_method_is_refused():
    """P13: nor those that the class defines."""

    class Begin(StartEvent):
        def plus(self) -> int:
            return 1

    assert Begin(a=1).plus() == 1
    with pytest.raises(TypeError, match=r"Begin\.plus is a method"):
        Begin(plus=2)
    with pytest.raises(TypeError, match=r"Begin\.plus is a method"):
        decode_event(Begin, {"plus": 2})


# -- forward references, generics, copies -----------------------------------------------------------------


def test_forward_references_are_resolved_when_needed():
    """Annotations may name classes that come later."""
    event = Node(later=Later(n=1), parent=Node())

    assert event.later.n == 1
    assert decode_event(Node, {"later": None, "parent": None}).later is None


def test_generic_events_work():
    """A generic class and its parametrisation, which is a subclass, make events with its fields."""
    assert Boxed[int](value=1).value == 1
    assert Boxed(value="x").value == "x"
    assert issubclass(type(Boxed[int](value=1)), Boxed)


@pytest.mark.parametrize(
    "event",
    [
        Plain(text="a", count=2),
        Empty(x=1, y=[2]),
        StopEvent(result={"a": 1}),
        Boxed(value=3),
        Node(later=Later(n=1)),
        StartEvent(),
    ],
)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_copies_and_pickles_have_the_same_fields(event, duplicate):
    """An event can be copied, and pickled by whoever wants to."""
    other = duplicate(event)

    assert type(other) is type(event)
    assert other is not event
    assert repr(other) == repr(event)
    with pytest.raises(FrozenInstanceError):
        other.new = 1


def test_attrs_tools_work():
    """evolve, asdict, fields_dict and has take events as they are."""
    event = attrs.evolve(Plain(text="a"), count=3)

    assert attrs.asdict(event) == {"text": "a", "count": 3}
    assert attrs.has(Plain)
    assert set(attrs.fields_dict(Deeper)) == {"text", "count", "flag"}


def test_events_match_by_keyword():
    """Structural pattern matching reads the fields."""
    match Deeper(text="a", flag=True):
        case Deeper(flag=True, text=text):
            found = text

    assert found == "a"


# -- open events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Event, StartEvent, StopEvent, InputRequiredEvent, HumanResponseEvent, Empty]
)
def test_class_without_fields_takes_any_keyword(kind):
    """Open events offer what they were given as attribute, by item and by get."""
    event = kind(topic="locks", depth=2)

    assert event.topic == "locks"
    assert event["depth"] == 2
    assert event.get("depth") == 2
    assert "topic" in event
    assert "other" not in event
    assert list(event) == ["topic", "depth"]
    assert event.to_dict() == {"topic": "locks", "depth": 2}


def test_declared_fields_are_read_in_the_same_ways():
    """Item, get, in, iteration and to_dict see declared fields too."""
    event = Plain(text="a")

    assert event["text"] == "a"
    assert event.get("count", 9) == 0
    assert list(event) == ["text", "count"]
    assert event.to_dict() == {"text": "a", "count": 0}


def test_what_an_event_has_not_is_missing_in_the_usual_way():
    """AttributeError, KeyError, and the default of get."""
    event = StartEvent(topic="locks")

    with pytest.raises(AttributeError):
        _ = event.other
    with pytest.raises(KeyError, match="other"):
        event["other"]
    assert event.get("other") is None
    assert event.get("other", 4) == 4
    assert Plain(text="a").get("other", 4) == 4


def test_to_dict_is_a_copy_of_the_outside_only():
    """Changing the dict changes no event; values are not copied."""
    event = Empty(tags=["a"])
    fields = event.to_dict()
    fields["tags"].append("b")
    fields["more"] = 1

    assert event.tags == ["a", "b"]
    assert "more" not in event


def test_class_may_be_open_and_declare_fields():
    """``open=True`` takes unknown keywords beside the declared ones."""

    class Both(Event, open=True):
        n: int
        tags: list[str] = []

    event = Both(n=1, extra="x")

    assert (event.n, event.tags, event.extra) == (1, [], "x")
    assert repr(event) == "Both(n=1, tags=[], extra='x')"
    with pytest.raises(TypeError, match="Both lacks 'n'"):
        Both(extra="x")


def test_class_without_fields_may_be_closed():
    """``open=False`` refuses every keyword."""

    class Closed(Event, open=False):
        pass

    Closed()
    with pytest.raises(TypeError, match="Closed has no field 'n'"):
        Closed(n=1)


def test_subclass_of_a_class_that_is_open_on_purpose_is_strict_again():
    """Being open is said by each class for itself: one that declares fields is closed."""

    class Both(Event, open=True):
        n: int

    class Child(Both):
        m: int = 0

    with pytest.raises(TypeError, match="Child has no field 'extra'"):
        Child(n=1, extra=2)


@pytest.mark.parametrize("name", ["get", "to_dict", "self"])
def test_open_field_may_have_any_name(name):
    """Every keyword is kept, whatever its name."""
    assert StartEvent(**{name: 1})[name] == 1


def test_result_of_a_stop_event():
    """StopEvent() has the result None; a subclass may declare one, or have none."""

    class Typed(StopEvent):
        score: float

    class WithResult(StopEvent):
        result: int

    assert StopEvent().result is None
    assert StopEvent(result=3).result == 3
    assert StopEvent(result=3, why="x").why == "x"
    assert Typed(score=0.5).result is None
    assert WithResult(result=4).result == 4
    with pytest.raises(TypeError, match="Typed has no field 'result'"):
        Typed(score=0.5, result=1)


# -- repr ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (Plain(text="a"), "Plain(text='a', count=0)"),
        (Empty(), "Empty()"),
        (StartEvent(topic="x", n=1), "StartEvent(topic='x', n=1)"),
        (StopEvent(result=None), "StopEvent(result=None)"),
        (Boxed(value=[1]), "Boxed(value=[1])"),
        (
            WorkflowTimedOutEvent(timeout=1.5, active_steps=("a",)),
            "WorkflowTimedOutEvent(timeout=1.5, active_steps=('a',))",
        ),
        (WorkflowCancelledEvent(reason="x"), "WorkflowCancelledEvent(reason='x')"),
    ],
)
def test_repr_shows_all_fields(event, shown):
    """Declared and open fields alike, as a call that would make it."""
    assert repr(event) == shown


def test_repr_of_a_local_class_is_short():
    """A class of a function body shows its own name."""

    class Local(Event):
        n: int

    assert repr(Local(n=1)) == "Local(n=1)"


# -- the tree of classes --------------------------------------------------------------------------------------------


def test_terminal_events_are_stop_events_and_internal_ones_are_not():
    """One isinstance tells the end of a stream."""
    for kind in (WorkflowFailedEvent, WorkflowTimedOutEvent, WorkflowCancelledEvent):
        assert issubclass(kind, StopEvent)
    for kind in (StepStateChanged, WorkflowIdleEvent):
        assert issubclass(kind, InternalEvent)
        assert not issubclass(kind, StopEvent)


# -- checks -----------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


@attrs.define
class Inner:
    n: int


@dataclasses.dataclass
class Data:
    n: int


class Checked(Event, validate=True):
    n: int = 0
    words: list[str] = []
    table: dict[str, int] = {}
    maybe: int | None = None
    colour: Colour = Colour.RED
    when: dt.date | None = None
    inner: Inner | None = None
    mode: Literal["a", "b"] = "a"
    anything: Any = None
    note: Annotated[str, "a mark"] = ""


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "words": ["a"], "table": {"a": 1}},
        {"maybe": 4, "colour": Colour.RED, "when": dt.date(2024, 1, 2)},
        {"inner": Inner(1), "mode": "b", "anything": object()},
        {"note": "x"},
    ],
)
def test_validating_class_takes_what_fits(fields):
    """``validate=True`` checks and keeps the very values."""
    event = Checked(**fields)

    assert all(event[name] is value for name, value in fields.items())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": "3"}, "Checked.n is '3', which is not int"),
        ({"words": "abc"}, "Checked.words is 'abc'"),
        ({"words": [1]}, "Checked.words is [1]"),
        ({"table": {"a": "b"}}, "Checked.table is {'a': 'b'}"),
        ({"maybe": "x"}, "Checked.maybe is 'x'"),
        ({"colour": "red"}, "Checked.colour is 'red', which is not Colour"),
        ({"when": "2024-01-02"}, "Checked.when is '2024-01-02'"),
        ({"mode": "c"}, "Checked.mode is 'c'"),
    ],
)
def test_validating_class_refuses_what_does_not_fit(fields, named):
    """P13: the message names class, field and value."""
    with pytest.raises(TypeError) as caught:
        Checked(**fields)

    assert str(caught.value).startswith(named)


def test_types_are_not_checked_unless_asked_for():
    """Construction inside a program costs nothing more than attrs."""
    assert Plain(text=3).text == 3
    with pytest.raises(TypeError, match=r"Plain\.text is 3, which is not str"):
        check_types(Plain, {"text": 3})


def test_subclass_of_a_validating_class_validates():
    """The option is inherited, and may be switched off."""

    class Child(Checked):
        m: int = 0

    class Loose(Checked, validate=False):
        pass

    with pytest.raises(TypeError, match=r"Child\.m is 'x'"):
        Child(m="x")
    with pytest.raises(TypeError, match=r"Child\.n is 'x'"):
        Child(n="x")
    assert Loose(n="x").n == "x"


def test_unresolvable_annotation_of_a_validating_class_is_explained():
    """P13: the message names the class, the missing name and where it must be."""

    class Broken(Event, validate=True):
        n: Missing  # noqa: F821

    with pytest.raises(TypeError, match=r"cannot resolve the annotations of .*Broken.*Missing"):
        Broken(n=1)


class FromOutside(Event):
    n: int
    when: dt.datetime | None = None
    colour: Colour = Colour.RED
    inner: Inner | None = None
    data: Data | None = None
    price: decimal.Decimal = decimal.Decimal(0)
    key: uuid.UUID | None = None
    many: list[Inner] = []


def test_plain_data_becomes_an_event():
    """P19: what JSON has no type for is converted as the annotations say."""
    event = decode_event(
        FromOutside,
        {
            "n": 3,
            "when": "2024-01-02T03:04:05",
            "colour": "red",
            "inner": {"n": 1},
            "data": {"n": 2},
            "price": "1.50",
            "key": "12345678-1234-5678-1234-567812345678",
            "many": [{"n": 4}],
        },
    )

    assert event.when == dt.datetime(2024, 1, 2, 3, 4, 5)  # noqa: DTZ001
    assert event.colour is Colour.RED
    assert event.inner == Inner(1)
    assert event.data == Data(2)
    assert event.price == decimal.Decimal("1.50")
    assert event.key == uuid.UUID("12345678-1234-5678-1234-567812345678")
    assert event.many == [Inner(4)]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"n": "3"}, "FromOutside.n"),
        ({"n": True}, "FromOutside.n"),
        ({"n": None}, "FromOutside.n"),
        ({"n": 1, "colour": "green"}, "FromOutside.colour"),
        ({"n": 1, "inner": {"n": "x"}}, "FromOutside.inner"),
        ({"n": 1, "when": "yesterday"}, "FromOutside.when"),
        ({}, "FromOutside lacks 'n'"),
        ({"n": 1, "m": 2}, "FromOutside has no field 'm'"),
    ],
)
def test_bad_data_from_outside_points_at_the_field(data, named):
    """P19: decoding refuses what does not fit, and says where."""
    with pytest.raises(TypeError) as caught:
        decode_event(FromOutside, data)

    assert named in str(caught.value)


def test_open_event_from_outside_keeps_what_it_is_given():
    """P19: an open class has nothing to check, and nothing is looked up by name."""
    event = decode_event(StartEvent, {"__class__": "os.system", "n": [1]})

    assert type(event) is StartEvent
    assert event["n"] == [1]


def test_private_field_cannot_be_set_from_outside():
    """P19: state of the event is not an argument, from outside least of all."""

    class Private(Event):
        shown: int
        _hidden: int = 0

    for name in ("_hidden", "hidden"):
        with pytest.raises(TypeError, match="Private has no field"):
            decode_event(Private, {"shown": 1, name: 5})


class Foreign:
    """Something that no library of encodings has ever heard of."""


class Holding(Event, validate=True):
    one: Foreign | None = None
    many: list[Foreign] = []
    error: BaseException | None = None
    call: Callable[[], int] | None = None
    kind: type[Event] | None = None
    event: Plain | None = None
    events: list[Plain] = []
    ratio: float = 0.0
    ratios: list[float] = []


@pytest.mark.parametrize(
    "fields",
    [
        {"one": Foreign()},
        {"many": [Foreign(), Foreign()]},
        {"error": ValueError("kept")},
        {"call": lambda: 3},
        {"kind": Plain},
        {"event": Plain(text="a")},
        {"event": Deeper(text="a")},
        {"events": [Plain(text="a"), Deeper(text="b")]},
        {"ratio": 1},
        {"ratios": [1, 2.5]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_validating_class_takes_any_object_that_fits(fields):
    """Classes of the program's own, exceptions and functions are field values like others."""
    event = Holding(**fields)

    assert all(event[name] is value for name, value in fields.items())


@pytest.mark.parametrize(
    "fields",
    [
        {"one": 3},
        {"many": [3]},
        {"error": "text"},
        {"call": 3},
        {"kind": "Plain"},
        {"event": Empty(text="a")},
        {"events": [Empty(text="a")]},
        {"events": [{"text": "a"}]},
        {"ratio": "1"},
        {"ratios": ["1"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_validating_class_refuses_objects_of_other_classes(fields):
    """An object of another class does not fit because its fields look alike."""
    [(name, value)] = fields.items()
    with pytest.raises(TypeError) as caught:
        Holding(**fields)

    assert str(caught.value).startswith(f"Holding.{name} is {value!r}, which is not ")
    assert "isinstance()" not in str(caught.value)


class Outer(Event):
    open: StartEvent | None = None
    plain: Plain | None = None
    plains: list[Plain] = []


def test_event_inside_an_event_from_outside_is_made_by_its_own_rules():
    """P19: a nested open event keeps its fields, a nested strict one gets its defaults."""
    event = decode_event(Outer, {"open": {"a": 1}, "plain": {"text": "b"}})

    assert repr(event.open) == "StartEvent(a=1)"
    assert repr(event.plain) == "Plain(text='b', count=0)"


@pytest.mark.parametrize(
    "data", [{"plain": {"text": "a", "zebra": 1}}, {"plains": [{"text": "a", "zebra": 1}]}]
)
def test_unknown_field_of_an_event_inside_an_event_from_outside_is_refused(data):
    """P19: what is unknown is refused at every depth."""
    with pytest.raises(TypeError, match="zebra"):
        decode_event(Outer, data)


@pytest.mark.peer("note 1.6")
def test_stop_event_of_ones_own_can_be_read():
    """The text of a stop event shows its fields, whatever they are called."""

    class Answered(StopEvent):
        text: str

    assert str(Answered(text="yes")) == "Answered(text='yes')"
    assert str(StopEvent(other=1)) == "StopEvent(other=1)"


def test_event_with_an_init_is_refused():
    """A constructor that would be replaced without a word is an error."""
    with pytest.raises(TypeError, match="expected fields as annotations"):

        class Odd(Event):
            def __init__(self, a): ...


def test_validation_knows_aliases():
    """``validate=True`` checks a field whatever its keyword is."""

    class Aliased(Event, validate=True):
        x: int = attrs.field(alias="y")

    assert Aliased(y=1).x == 1
    with pytest.raises(TypeError, match=r"Aliased\.x is 'no'"):
        Aliased(y="no")
