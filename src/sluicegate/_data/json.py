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
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import attrs
import msgspec

from sluicegate._annotations import class_of, extras_of, is_union, without_extras
from sluicegate._data.data_fields import (
    COLLECTIONS,
    DataField,
    DataFields,
    data_fields_of,
    items_of,
    made_of_text,
    meant_by,
)
from sluicegate._data.from_outside import TAG, is_plain
from sluicegate._data.pydantic import is_for_pydantic, is_pydantic
from sluicegate._data.refusals import DecodingError
from sluicegate._events import Event, StopEvent, fields_of
from sluicegate._events.generics import plain_class
from sluicegate._events.idioms import DESCRIBING


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The dialect of the schemas.
DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: The schema of a value that cannot come from outside.
_NOTHING: dict[str, Any] = {"not": {}}
#: The maximum depth at which members of a value are encoded one by one.
DEEPEST = 50


def encode(event: Event) -> str:
    """Return an event as one line of JSON, tagged with the name of its class.

    A path is written as its text, and any other value that JSON cannot hold as its repr.
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
    """Return the fields of an event that are not private; a plain stop event has a result."""
    values = {name: value for name, value in fields_of(event).items() if not name.startswith("_")}
    if type(event) is StopEvent:
        values.setdefault("result", None)
    return values


def json_of(value: Any, depth: int = 0) -> str:
    """Return a value as JSON; values that JSON cannot hold are written as their repr."""
    encoded = _try_encode(value)
    if encoded is not None:
        return encoded
    if isinstance(value, dict) and depth < DEEPEST:
        # One field that cannot be encoded does not change how the others are written.
        members = cast("dict[Any, Any]", value)
        fields = (f"{json_of(str(k))}:{json_of(v, depth + 1)}" for k, v in members.items())
        return f"{{{','.join(fields)}}}"
    shown = _safe_repr(value).encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(shown).decode()


def _try_encode(value: Any, hook: Callable[[Any], Any] | None = None) -> str | None:
    """Return ``value`` as JSON, or None if a part of it cannot be encoded."""
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

    The schema has the fields with their annotations, defaults and descriptions, and the classes in
    these annotations under ``$defs``. It does not describe converters and validators, because they
    are functions. Pydantic accepts more than its schema, such as ``"5"`` for a number.

    Raises:
        TypeError: An annotation cannot be resolved.
    """
    plain = plain_class(cls)
    made = _with_definitions(
        lambda s: s.fields(plain, cast("DataFields", data_fields_of(plain))), _Schemas()
    )
    return {"$schema": DIALECT, **made}


def schema_of_value(hint: Any) -> dict[str, Any]:
    """Return the JSON Schema of the data that `decode_value` takes for an annotation.

    Its definitions are in ``$defs``. A part that no data can make has the schema ``{"not": {}}``.

    Raises:
        TypeError: An annotation cannot be resolved.
    """
    return _with_definitions(lambda schemas: schemas.of(hint), _Schemas())


def schema_of_fields(fields: DataFields) -> dict[str, Any]:
    """Return the JSON Schema of an object with some fields; otherwise as `schema_of_value`."""
    return _with_definitions(lambda schemas: schemas.object_with(fields), _Schemas())


SchemasT = TypeVar("SchemasT", bound="_Schemas")


def _with_definitions(
    make: Callable[[SchemasT], dict[str, Any]], schemas: SchemasT
) -> dict[str, Any]:
    try:
        made = make(schemas)
    except DecodingError as error:
        raise TypeError(str(error)) from error.__cause__
    return {**made, "$defs": schemas.defs} if schemas.defs else made


def result_schema_of(kinds: Sequence[type[StopEvent]], result: Any) -> dict[str, Any]:
    """Return the JSON Schema of what `data_of` writes of the event that ends a run.

    It is always that of an object. It describes a value as it is written, where `schema_of` describes
    it as it is read: without aliases, tags and refused types.

    Args:
        kinds: The classes of the event.
        result: The annotation of ``result`` in a plain :class:`StopEvent`.

    Raises:
        TypeError: An annotation cannot be resolved.
    """

    def make(schemas: _WrittenSchemas) -> dict[str, Any]:
        made = [schemas.of_stop(kind, result) for kind in kinds]
        return made[0] if len(made) == 1 else {"type": "object", "anyOf": made}

    schema = {"$schema": DIALECT, **_with_definitions(make, _WrittenSchemas())}
    return cast("dict[str, Any]", _open_up(schema))


def _open_up(schema: Any) -> Any:
    """Return a schema in which values that cannot come from outside may be anything, and with more keys."""
    if isinstance(schema, list):
        return [_open_up(part) for part in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    parts = cast("dict[str, Any]", schema)
    if parts == _NOTHING:
        return {}
    return {k: _open_up(v) for k, v in parts.items() if (k, v) != ("additionalProperties", False)}


class _Schemas:
    """Makes the schemas of annotations and collects their definitions."""

    #: The mode of the schemas of pydantic's types.
    for_pydantic: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._names: dict[tuple[Any, str], str] = {}

    def fields(self, cls: Any, declared: DataFields) -> dict[str, Any]:
        """Return the schema of a class with named fields."""
        schema = {"title": cls.__name__, **self.object_with(declared)}
        # The docstring of a dataclass without one is its signature.
        text: str = cast("Any", vars(cls)).get("__doc__") or ""
        if text and not text.startswith(f"{cls.__name__}("):
            schema["description"] = inspect.cleandoc(text)
        return schema

    def object_with(self, declared: DataFields) -> dict[str, Any]:
        """Return the schema of an object with the declared fields."""
        properties: dict[str, Any] = {}
        required: list[str] = []
        either: list[Any] = []
        for field in declared.fields:
            made = {**self.of(field.hint), **_described(field)}
            properties |= dict.fromkeys(field.names, made)
            if field.is_required and len(field.names) == 1:
                required += field.names
            elif field.is_required:
                either.append({"anyOf": [{"required": [name]} for name in field.names]})
        if declared.tag is not None:
            properties[declared.tag[0]] = {"const": declared.tag[1]}
        schema = {"type": "object", "properties": properties}
        more = {"required": required, "allOf": either}
        schema |= {name: part for name, part in more.items() if part}
        return {**schema, "additionalProperties": False} if declared.is_closed else schema

    def of(self, hint: Any) -> dict[str, Any]:  # noqa: PLR0911 - one for each form, as in _decode
        """Return the schema of an annotation."""
        hint = meant_by(hint)
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Annotated:
            return self._annotated(hint)
        if is_union(hint):
            return {"anyOf": self._members(arguments)}
        if typing.get_origin(hint) is typing.Literal:  # msgspec 0.19 cannot sort mixed values
            return {"enum": [*arguments]}
        cls: Any = plain_class(hint)
        if is_pydantic(cls):
            return self._of_pydantic(hint)
        if not isinstance(cls, type):
            return self._of_msgspec(hint)
        if (declared := data_fields_of(cls, arguments)) is not None:
            return self._named(cls, arguments, declared)
        if issubclass(cls, tuple) and (arguments or cls is not tuple):
            return self._tuple(cls, arguments)
        if issubclass(cls, Mapping) and len(arguments) == 2:
            return self._mapping(*arguments)
        if cls in COLLECTIONS and len(arguments) == 1:
            return {"type": "array", "items": self.of(arguments[0])}
        return self._of_msgspec(hint)

    def _named(self, cls: Any, arguments: tuple[Any, ...], declared: DataFields) -> dict[str, Any]:
        """Return a reference to the definition of a class, which may refer to itself."""
        key = (cls, repr(arguments))
        if key not in self._names:
            plain = re.sub(r"[^\w.-]", "_", cls.__name__)
            name = next(name for name in map(plain.__add__, _suffixes()) if name not in self.defs)
            self._names[key] = name
            self.defs[name] = {}  # taken
            made = self.defs[name] = self.fields(cls, declared)
            if issubclass(cls, Event) and declared.is_closed:
                made["properties"] = {TAG: {"const": cls.__name__}, **made["properties"]}
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _adopted(self, make: Callable[[str], tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        """Return a schema that a library makes, and add its definitions.

        Args:
            make: Returns the schema and its definitions, given a suffix for names in references.
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
            schema.pop("uniqueItems", None)  # a set accepts duplicates
            return schema, defs

        try:
            return self._adopted(make)
        except TypeError:  # a type that msgspec does not know
            return _NOTHING

    def _of_pydantic(self, hint: Any) -> dict[str, Any]:
        import pydantic  # noqa: PLC0415 - it is in use

        def make(suffix: str) -> tuple[Any, dict[str, Any]]:
            template = f"#/$defs/{{model}}{suffix}"
            adapter = pydantic.TypeAdapter(hint)
            schema = adapter.json_schema(ref_template=template, **self.for_pydantic)
            return schema, schema.pop("$defs", {})

        try:
            return self._adopted(make)
        except pydantic.errors.PydanticUserError:  # the type has no schema
            return {}

    def _annotated(self, hint: Any) -> dict[str, Any]:
        parts: tuple[Any, ...] = hint.__metadata__
        if any(isinstance(part, msgspec.Meta) for part in parts) and is_plain(hint):
            made = self._of_msgspec(hint)
        elif any(map(is_for_pydantic, parts)):
            made = self._of_pydantic(hint)
        else:
            made = self.of(hint.__origin__)
        text = note_of(hint)
        return made if text is None else {"description": text, **made}

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

    def _tuple(self, cls: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        if arguments[1:] == (...,):
            return {"type": "array", "items": self.of(arguments[0])}
        kinds, least = items_of(cls, arguments)
        items = [self.of(kind) for kind in kinds]
        return {"type": "array", "prefixItems": items, "minItems": least, "maxItems": len(items)}

    def _mapping(self, key: Any, value: Any) -> dict[str, Any]:
        schema = {"type": "object", "additionalProperties": self.of(value)}
        if key is int:
            schema["propertyNames"] = {"pattern": "^-?[0-9]+$"}
        elif key not in (str, float, Any):
            schema["propertyNames"] = self.of(key)
        return schema


class _WrittenSchemas(_Schemas):
    """Makes the schemas of values as they are written."""

    for_pydantic: ClassVar[dict[str, Any]] = {"mode": "serialization", "by_alias": False}

    def of_stop(self, kind: type[StopEvent], result: Any) -> dict[str, Any]:
        """Return the schema of the event that ends a run."""
        plain = plain_class(kind)
        if plain is StopEvent:
            return {
                "type": "object",
                "properties": {"result": self.of(result)},
                "required": ["result"],
            }
        return self.fields(plain, cast("DataFields", data_fields_of(plain)))

    def _members(self, kinds: tuple[Any, ...]) -> list[dict[str, Any]]:
        return [self.of(kind) for kind in kinds]


def note_of(hint: Any) -> str | None:
    """Return the text about a value in ``Annotated[str, "the text"]``, or in a PEP 727 ``Doc``."""
    notes = (getattr(part, "documentation", part) for part in extras_of(hint))
    return next((note for note in notes if isinstance(note, str)), None)


def _suffixes() -> typing.Iterator[str]:
    """Yield suffixes for classes of the same name: an empty one, then numbers."""
    yield ""
    yield from (f"_{number}" for number in itertools.count(2))


def _described(field: DataField) -> dict[str, Any]:
    """Return the default of a field, if it is a value, and the options that describe it."""
    made: dict[str, Any] = {}
    is_value = field.default is not attrs.NOTHING
    if is_value and (default := _try_encode(field.default, _refuse)) is not None:
        made["default"] = msgspec.json.decode(default)
    for name in DESCRIBING:
        if name == "json_schema_extra":
            extra: Any = field.metadata.get(name)
            made |= extra if isinstance(extra, dict) else {}
        elif name in field.metadata:
            made[name] = field.metadata[name]
    return made


def _refuse(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError


def _other(kind: Any) -> dict[str, Any]:
    """Return the schema of a class that msgspec does not know, for msgspec."""
    return {"type": "string"} if made_of_text(kind) else _NOTHING
