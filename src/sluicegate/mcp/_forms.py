"""Open questions as the forms of an elicitation, and the contents of such a form as an answer.

A form is flat: its fields are strings, numbers, booleans and choices. A field of any other type is
a string that contains JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._data.from_outside import TAG, decode_event
from sluicegate._data.json import data_of, schema_of
from sluicegate._events import HumanResponseEvent, is_open
from sluicegate._questions import PROMPTS


if TYPE_CHECKING:
    from collections.abc import Mapping

    from sluicegate._events import Event
    from sluicegate._questions import OpenQuestion


#: The keywords of a field in a form, by its type.
_DESCRIBING = ("title", "description", "default")
_KEYWORDS = {
    "string": (*_DESCRIBING, "minLength", "maxLength"),
    "number": (*_DESCRIBING, "minimum", "maximum"),
    "integer": (*_DESCRIBING, "minimum", "maximum"),
    "boolean": _DESCRIBING,
}
_FORMATS = ("email", "uri", "date", "date-time")


@attrs.frozen
class _Field:
    """A field of an answer in a form.

    Attributes:
        schema: Its schema in the form.
        is_json: Whether it is a string that contains JSON.
        is_optional: Whether the form may leave it out, because it may be null.
        is_null: Whether it is then null, because it has no other default.
    """

    schema: dict[str, Any]
    is_json: bool
    is_optional: bool
    is_null: bool


@attrs.frozen
class Form:
    """A question as a form.

    Attributes:
        message: The text of the question.
        schema: The JSON Schema of the answer, as flat as MCP wants it.
    """

    message: str
    schema: dict[str, Any]
    _classes: tuple[type[Event], ...]
    #: The fields of each class.
    _fields: dict[str, dict[str, _Field]]

    def answer(self, content: Mapping[str, Any]) -> Event:
        """Return the answer that a client has given.

        Raises:
            TypeError: It does not fit; the message names the field.
        """
        data = dict(content)
        cls = self._classes[0]
        if len(self._classes) > 1:
            names = [kind.__name__ for kind in self._classes]
            name = data.pop(TAG, None)
            if name not in names:
                msg = f"{TAG} is {name!r}; expected one of {', '.join(names)}"
                raise TypeError(msg)
            cls = self._classes[names.index(name)]
        fields = self._fields[cls.__name__]
        if len(self._classes) > 1:  # the form has the fields of all classes
            data = {name: value for name, value in data.items() if name in fields}
        for name, field in fields.items():
            value = data.get(name)
            if value is None and field.is_null:
                data[name] = None
            elif value is None:
                data.pop(name, None)
            elif field.is_json and isinstance(value, str):
                data[name] = _from_json(name, value)
        return decode_event(cls, data)


def _from_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        msg = f"{name} is not JSON ({error}); expected a value as its description shows it"
        raise TypeError(msg) from None


def form_of(question: OpenQuestion, error: str = "") -> Form:
    """Return a question as a form.

    Args:
        question: The question.
        error: The error of an answer that was given.
    """
    classes = question.answers or (HumanResponseEvent,)
    properties: dict[str, Any] = {}
    required: list[str] = []
    fields: dict[str, dict[str, _Field]] = {}
    if len(classes) > 1:
        properties[TAG] = {
            "type": "string",
            "title": "Kind of answer",
            "enum": [cls.__name__ for cls in classes],
        }
        required.append(TAG)
    for cls in classes:
        schema = _schema_of(cls)
        needed = schema.get("required", [])
        shown = fields[cls.__name__] = {
            name: _flat(each, schema, is_required=name in needed)
            for name, each in schema["properties"].items()
        }
        for name, field in shown.items():
            properties.setdefault(name, field.schema)
        if len(classes) == 1:
            required += [name for name in needed if not shown[name].is_optional]
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        made["required"] = required
    text = _text_of(question)
    return Form(f"{error}\n{text}" if error else text, made, classes, fields)


def _schema_of(cls: type[Event]) -> dict[str, Any]:
    schema = schema_of(cls)
    if is_open(cls) and not schema["properties"]:
        # An open answer has what the program outside puts into it; by convention a `response`.
        schema["properties"] = {"response": {"type": "string", "title": "Response"}}
        schema["required"] = ["response"] if cls is HumanResponseEvent else []
    return schema


def _text_of(question: OpenQuestion) -> str:
    event = question.event
    if event is None:
        kinds = " or ".join(kind.__name__ for kind in question.answers)
        return f"The run waits for {kinds or 'an answer'}."
    fields = data_of(event)
    for name in PROMPTS:
        text = fields.get(name)
        if isinstance(text, str) and text.strip():
            del fields[name]
            rest = json.dumps(fields, ensure_ascii=False) if fields else ""
            return f"{text.strip()}\n{rest}".strip()
    return f"{type(event).__name__}: {json.dumps(fields, ensure_ascii=False)}"


def _flat(schema: dict[str, Any], root: dict[str, Any], *, is_required: bool) -> _Field:
    """Return a field of an answer as a field of a form."""
    described = {name: schema[name] for name in _DESCRIBING if schema.get(name) is not None}
    meant, is_optional = _meant(schema, root)
    flat = _plain(meant) or _choice(meant, root)
    if flat is not None:
        field = {**flat, **described}
        if not isinstance(field.get("default"), _PYTHON[field["type"]]):
            field.pop("default", None)
        return _Field(field, False, is_optional, is_optional and is_required)
    if "default" in described:
        described["default"] = json.dumps(described["default"])
    wanted = json.dumps({k: v for k, v in meant.items() if k not in _DESCRIBING})
    text = f"{described.get('description', '')} JSON that fits {wanted}".strip()
    field = {**described, "type": "string", "description": text}
    return _Field(field, True, is_optional, is_optional and is_required)


#: The classes of the default of a field, by its type.
_PYTHON: dict[str, Any] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "array": list,
}


def _meant(schema: dict[str, Any], root: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a schema without its reference and without null, and whether it accepts null."""
    is_optional = False
    for _ in range(50):  # a schema may refer to itself
        if "$ref" in schema:
            name = cast("str", schema["$ref"]).rpartition("/")[2]
            schema = root.get("$defs", {}).get(name, {})
            continue
        kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
        is_optional = is_optional or len(kinds) < len(schema.get("anyOf", ()))
        if len(kinds) != 1:
            break
        schema = kinds[0]
    return schema, is_optional


def _plain(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a string, a number or a boolean in a form; None for anything else."""
    kind = schema.get("type")
    if kind == ["string", "number"]:  # a decimal
        kind = "string"
    if not isinstance(kind, str) or kind not in _KEYWORDS or "enum" in schema or "const" in schema:
        return None
    made = {name: schema[name] for name in _KEYWORDS[kind] if name in schema}
    if kind == "string" and schema.get("format") in _FORMATS:
        made["format"] = schema["format"]
    return {"type": kind, **made}


def _choice(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a choice of strings, or of several, in a form; None for anything else."""
    if _are_texts(schema.get("enum")):
        return {"type": "string", "enum": schema["enum"]}
    items = schema.get("items")
    if schema.get("type") == "array" and isinstance(items, dict):
        one, _ = _meant(cast("dict[str, Any]", items), root)
        if _are_texts(one.get("enum")):
            limits: dict[str, Any] = {k: schema[k] for k in ("minItems", "maxItems") if k in schema}
            return {"type": "array", "items": {"type": "string", "enum": one["enum"]}, **limits}
    return None


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, str) for value in cast("list[Any]", values)
    )
