"""Events as JSON for readers outside, and the JSON Schema of the data that makes an event.

A value that JSON cannot hold is written as its repr. So JSON is for readers; a snapshot keeps types.
"""

from __future__ import annotations

import enum
import inspect
import itertools
import re
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast

import attrs
import msgspec

from sluicegate._annotations import (
    behind,
    class_of,
    hints_by_keyword,
    is_typeddict,
    is_union,
    without_extras,
)
from sluicegate._data.from_outside import (
    COLLECTIONS,
    TAG,
    hints_in,
    input_of,
    is_plain,
    made_of_text,
    parameters_of,
    required_of,
)
from sluicegate._data.pydantic import is_for_pydantic, is_pydantic
from sluicegate._events import Event, StopEvent, fields_of, is_open
from sluicegate._events.generics import plain_class
from sluicegate._events.idioms import DESCRIBING


if TYPE_CHECKING:
    from collections.abc import Callable

#: The dialect of the schemas.
DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: The schema of a value that cannot come from outside.
_NOTHING: dict[str, Any] = {"not": {}}
#: How many levels of what cannot be encoded as a whole are gone through one by one.
DEEPEST = 50


def encode(event: Event) -> str:
    """Return an event as one line of JSON, tagged with the name of its class.

    A path is its text; whatever else JSON cannot hold stands there as its repr.
    """
    tagged: dict[str, Any] = {"event": type(event).__name__}
    for name, value in shown_fields(event).items():
        while name in tagged:
            name += "_"
        tagged[name] = value
    return json_of(tagged)


def data_of(event: Event) -> dict[str, Any]:
    """Return the fields of an event as plain JSON data, as `encode` writes them, without a tag."""
    return cast("dict[str, Any]", msgspec.json.decode(json_of(shown_fields(event))))


def shown_fields(event: Event) -> dict[str, Any]:
    """Return the fields of an event that are not private; a stop event has a result."""
    values = {name: value for name, value in fields_of(event).items() if not name.startswith("_")}
    if type(event) is StopEvent:
        values.setdefault("result", None)
    return values


def json_of(value: Any, depth: int = 0) -> str:
    """Return a value as JSON; what JSON cannot hold stands there as its repr."""
    encoded = _try_encode(value)
    if encoded is not None:
        return encoded
    if isinstance(value, dict) and depth < DEEPEST:
        # One field that cannot be encoded does not take the others with it.
        members = cast("dict[Any, Any]", value)
        fields = (f"{json_of(str(k))}:{json_of(v, depth + 1)}" for k, v in members.items())
        return f"{{{','.join(fields)}}}"
    shown = _safe_repr(value).encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(shown).decode()


def _try_encode(value: Any, hook: Callable[[Any], Any] | None = None) -> str | None:
    """Return ``value`` as JSON, or None where something in it cannot be encoded."""
    try:
        return msgspec.json.encode(value, enc_hook=hook or _plain).decode()
    except Exception:  # noqa: BLE001 - whatever a value of the user's does when it is read
        return None


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # a model of pydantic
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, PurePath) else _safe_repr(value)


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a repr of the user's that raises
        return f"<{type(value).__qualname__} whose repr fails>"


# -- schemas ----------------------------------------------------------------------------------------


def schema_of(cls: type[Event]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the data that `decode_event` takes for an event.

    It has the fields with their annotations, defaults and descriptions. Classes that fields name
    are in ``$defs``. Converters and validators are functions, so they are not in it; pydantic also
    converts more than its schema says, such as ``"5"`` to a number.

    Raises:
        TypeError: An annotation cannot be resolved.
    """
    schemas = _Schemas()
    made = schemas.event(plain_class(cls))
    return {"$schema": DIALECT, **made, **({"$defs": schemas.defs} if schemas.defs else {})}


class _Schemas:
    """The schemas of annotations, and the definitions that they refer to."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._names: dict[tuple[Any, str], str] = {}

    def event(self, cls: type[Event]) -> dict[str, Any]:
        """Return the schema of an event that stands alone."""
        hints = hints_by_keyword(cls)
        properties: dict[str, Any] = {}
        required: list[str] = []
        for field in attrs.fields(cls):
            if not field.init:
                continue
            made = self.of(input_of(field.converter, hints[field.alias]))
            properties[field.alias] = {**made, **_described(field)}
            if field.default is attrs.NOTHING:
                required.append(field.alias)
        schema = _object(cls, properties, required)
        return schema if is_open(cls) else {**schema, "additionalProperties": False}

    def of(self, hint: Any) -> dict[str, Any]:  # noqa: C901, PLR0911 - one for each form, as in _decode
        """Return the schema of an annotation."""
        origin, arguments = cast("Any", typing.get_origin(hint)), typing.get_args(hint)
        if origin is typing.Annotated:
            return self._annotated(hint)
        if isinstance(hint, TypeVar):
            return self.of(hint.__bound__ or Union[hint.__constraints__ or (Any,)])  # noqa: UP007
        if hasattr(origin, "__value__"):
            return self.of(origin.__value__[arguments])
        if meant := behind(hint):
            return self.of(meant[0])
        if is_union(hint):
            return {"anyOf": self._members(arguments)}
        cls: Any = plain_class(hint)
        if is_pydantic(cls):
            return self._of_pydantic(hint)
        if not isinstance(cls, type):
            return self._of_msgspec(hint)
        if (make := self._maker_for(cls)) is not None:
            return self._named(cls, arguments, make)
        if issubclass(cls, tuple) and (arguments or hasattr(cls, "_fields")):
            return self._tuple(cls, arguments)
        if issubclass(cls, Mapping) and len(arguments) == 2:
            return self._mapping(*arguments)
        if cls in COLLECTIONS and len(arguments) == 1:
            return {"type": "array", "items": self.of(arguments[0])}
        return self._of_msgspec(hint)

    def _maker_for(self, cls: type) -> Callable[..., dict[str, Any]] | None:
        """Return what makes the definition of a class with named fields."""
        if issubclass(cls, Event):
            return self._nested_event
        if attrs.has(cls) or hasattr(cls, "__dataclass_fields__"):
            return self._fields
        if is_typeddict(cls):
            return self._typed_dict
        config = getattr(cls, "__struct_config__", None)
        return None if config is None or config.array_like else self._struct

    def _named(
        self, cls: Any, arguments: tuple[Any, ...], make: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Return a reference to the definition of a class, which may refer to itself."""
        key = (cls, repr(arguments))
        if key not in self._names:
            plain = re.sub(r"[^\w.-]", "_", cls.__name__)
            name = next(name for name in map(plain.__add__, _suffixes()) if name not in self.defs)
            self._names[key] = name
            self.defs[name] = {}  # taken
            self.defs[name] = make(cls, arguments)
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _adopted(self, make: Callable[[str], tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        """Return a schema that a library made, and take its definitions over.

        Args:
            make: Returns the schema and its definitions, given the end of the names in references.
        """
        for suffix in _suffixes():
            schema, made = make(suffix)
            defs = {name + suffix: definition for name, definition in made.items()}
            if all(self.defs.get(name, each) == each for name, each in defs.items()):
                self.defs.update(defs)
                return cast("dict[str, Any]", schema)
        raise AssertionError  # the suffixes do not end

    def _of_msgspec(self, hint: Any) -> dict[str, Any]:
        cls = class_of(without_extras(hint))
        if cls is object:
            return {}
        if isinstance(cls, type) and issubclass(cls, enum.Flag):
            return {"type": "integer"}

        def make(suffix: str) -> tuple[Any, dict[str, Any]]:
            (schema,), defs = msgspec.json.schema_components(
                [hint], schema_hook=_other, ref_template=f"#/$defs/{{name}}{suffix}"
            )
            if schema.get("format") == "decimal":
                schema["type"] = ["string", "number"]
            schema.pop("uniqueItems", None)  # a set takes an item twice
            return schema, defs

        try:
            return self._adopted(make)
        except TypeError:  # a type that msgspec does not know
            return _NOTHING

    def _of_pydantic(self, hint: Any) -> dict[str, Any]:
        from pydantic import TypeAdapter  # noqa: PLC0415 - it is in use

        adapter: Any = TypeAdapter(hint)

        def make(suffix: str) -> tuple[Any, dict[str, Any]]:
            schema = adapter.json_schema(ref_template=f"#/$defs/{{model}}{suffix}")
            return schema, schema.pop("$defs", {})

        return self._adopted(make)

    def _annotated(self, hint: Any) -> dict[str, Any]:
        parts: tuple[Any, ...] = hint.__metadata__
        if any(isinstance(part, msgspec.Meta) for part in parts) and is_plain(hint):
            return self._of_msgspec(hint)
        if any(map(is_for_pydantic, parts)):
            return self._of_pydantic(hint)
        return self.of(hint.__origin__)

    def _members(self, kinds: tuple[Any, ...]) -> list[dict[str, Any]]:
        classes = [plain_class(kind) for kind in kinds]
        events = [cls for cls in classes if isinstance(cls, type) and issubclass(cls, Event)]
        made = [self.of(kind) for kind in kinds]
        if len(events) < 2:
            return made
        tags = [
            {"properties": {TAG: {"const": cls.__name__}}, "required": [TAG]}
            if cls in events
            else {}
            for cls in classes
        ]
        return [{**schema, **tag} for schema, tag in zip(made, tags, strict=True)]

    def _nested_event(self, cls: Any, _arguments: tuple[Any, ...]) -> dict[str, Any]:
        schema = self.event(cls)
        if not is_open(cls):
            schema["properties"] = {TAG: {"const": cls.__name__}, **schema["properties"]}
        return schema

    def _fields(self, cls: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """Return the schema of an attrs class or a dataclass, which take a field by either name."""
        hints = hints_in(cls, arguments)
        properties: dict[str, Any] = {}
        required: list[str] = []
        either: list[dict[str, Any]] = []
        for name, keyword, needed, converter in parameters_of(cls):
            hint = hints.get(name, Any)
            hint = getattr(hint, "type", hint) if type(hint).__name__ == "InitVar" else hint
            names = dict.fromkeys((keyword, name))
            properties |= dict.fromkeys(names, self.of(input_of(converter, hint)))
            if needed and len(names) == 1:
                required.append(name)
            elif needed:
                either.append({"anyOf": [{"required": [each]} for each in names]})
        schema = _object(cls, properties, required)
        return {**schema, "allOf": either} if either else schema

    def _typed_dict(self, cls: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        required: list[str] = []
        for name, hint in hints_in(cls, arguments).items():
            meant, is_needed = required_of(hint, name in cls.__required_keys__)
            properties[name] = self.of(meant)
            if is_needed:
                required.append(name)
        return _object(cls, properties, required)

    def _struct(self, cls: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        hints, config = hints_in(cls, arguments), cls.__struct_config__
        fields = msgspec.structs.fields(cls)
        properties = {field.encode_name: self.of(hints[field.name]) for field in fields}
        if config.tag_field is not None:
            properties[config.tag_field] = {"const": config.tag}
        required = [field.encode_name for field in fields if field.required]
        schema = _object(cls, properties, required)
        return {**schema, "additionalProperties": False} if config.forbid_unknown_fields else schema

    def _tuple(self, cls: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        if arguments[1:] == (...,):
            return {"type": "array", "items": self.of(arguments[0])}
        least = len(arguments)
        if hasattr(cls, "_fields"):
            hints = hints_in(cls, arguments)
            arguments = tuple(hints[name] for name in cls._fields)
            least = len(arguments) - len(cls._field_defaults)
        items = [self.of(kind) for kind in arguments]
        return {"type": "array", "prefixItems": items, "minItems": least, "maxItems": len(items)}

    def _mapping(self, key: Any, value: Any) -> dict[str, Any]:
        schema = {"type": "object", "additionalProperties": self.of(value)}
        if key is int:
            schema["propertyNames"] = {"pattern": "^-?[0-9]+$"}
        elif key not in (str, float, Any):
            schema["propertyNames"] = self.of(key)
        return schema


def _suffixes() -> typing.Iterator[str]:
    """Yield ends of names: none, then numbers, for classes of the same name."""
    yield ""
    yield from (f"_{number}" for number in itertools.count(2))


def _object(cls: Any, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"title": cls.__name__, "type": "object", "properties": properties}
    if required:
        schema["required"] = required
    text: str | None = vars(cls).get("__doc__")
    # A dataclass without a docstring has its signature there.
    if text and not text.startswith(f"{cls.__name__}("):
        schema["description"] = inspect.cleandoc(text)
    return schema


def _described(field: attrs.Attribute[Any]) -> dict[str, Any]:
    """Return the default of a field, where it is a value, and the options that describe it."""
    made: dict[str, Any] = {}
    is_value = field.default is not attrs.NOTHING and not isinstance(field.default, _FACTORY)
    if is_value and (default := _try_encode(field.default, _refuse)) is not None:
        made["default"] = msgspec.json.decode(default)
    for name in DESCRIBING:
        if name == "json_schema_extra":
            extra: Any = field.metadata.get(name)
            made |= extra if isinstance(extra, dict) else {}
        elif name in field.metadata:
            made[name] = field.metadata[name]
    return made


_FACTORY: Any = attrs.Factory


def _refuse(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError


def _other(kind: Any) -> dict[str, Any]:
    """Return the schema of a class that msgspec does not know, for msgspec."""
    cls: Any = class_of(kind)
    return {"type": "string"} if isinstance(cls, type) and made_of_text(cls) else _NOTHING
