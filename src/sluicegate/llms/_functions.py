"""``tool(function)``: a function's signature as a schema, and the arguments of a model as its own."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._annotations import (
    UNRESOLVED,
    extras_of,
    is_async,
    is_context,
    resolve,
    text_of,
    unbound,
)
from sluicegate._data.data_fields import DataField, DataFields
from sluicegate._data.from_outside import decode_value
from sluicegate._data.json import note_of, schema_of_fields
from sluicegate._data.refusals import DecodingError
from sluicegate._errors import brief
from sluicegate._loop import current_backend
from sluicegate._loop.threads import ThreadStep

from ._tools import Tool, ToolError


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping


_KINDS = inspect.Parameter

#: The number of faults in a message for the model.
_LISTED = 5

#: What JSON can hold, for messages.
_POSSIBLE = (
    "str, int, float, bool, None, an enum, a date, a list or dict of these, a dataclass, an attrs, "
    "msgspec or pydantic class, or an Event"
)

#: The headings at which the description of a function ends.
_HEADING = re.compile(
    r"^(args|arguments|parameters|params|returns?|raises|yields?|examples?|notes?|warnings?):?\s*$"
    r"|^:(param|returns?|raises|rtype|type)\b",
    re.IGNORECASE | re.MULTILINE,
)
_ARGUMENTS = re.compile(r"(args|arguments|parameters|params):?", re.IGNORECASE)
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_SPHINX = re.compile(r":param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")
_NUMPY = re.compile(r"(\w+)()\s*(?::.*)?")


def tool(
    function: Callable[..., Any],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    errors: tuple[type[Exception], ...] = (),
) -> Tool:
    """
    Make a tool of a function.

    ::

        tools = [tool(find_trains), tool(self.book)]

    The schema is read from the annotations and the docstring. A parameter is described by a text in
    its annotation (``Annotated[str, "Name of the city"]``) or by the docstring's ``Args:``
    (``Parameters`` and ``:param city:`` too); it is optional if it has a default. Annotations are
    those of event fields: plain types, enums, literals, unions, collections, dates, dataclasses,
    attrs, msgspec and pydantic classes, nested in any way.

    The arguments of a model are decoded by these annotations before the function is called, and never
    by a name in the data. An ``async`` function is awaited in the task of the call. A ``def`` function
    runs in a worker thread, as a ``def`` step does: a cancellation waits for it.

    Bind what the model does not choose: ``tool(functools.partial(save, ctx))``, a method of an object,
    or a function within a step.

    Args:
        function: An async function, or a plain one.
        name: By default the function's.
        description: By default the docstring's text, without its sections.
        errors: Exceptions of the function whose text the model gets, like that of a `ToolError`.
            Any other exception is raised where the tool is called.

    Returns:
        The tool. Its ``call`` is a checkpoint; cancelled, it cancels the function.

    Raises:
        TypeError: The function cannot be a tool. The message names each faulty parameter, with the
            path in it and the line to write.
        ValueError: The name is not one that models accept.
    """
    _check_function(function)
    _check_errors(errors)
    own_name = _name_of(function)
    name = own_name if name is None else name
    text, notes = _read_docstring(inspect.getdoc(unbound(function)) or "")
    fields = _fields_of(function, own_name, notes)
    call = _Caller(name, function, fields, errors)
    return Tool(
        name=name,
        description=text if description is None else description,
        input_schema=_schema_of(own_name, fields),
        call=call,
    )


class _Caller:
    """Calls the function of a tool with the arguments of a model."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        fields: DataFields,
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._name = name
        self._fields = {field.keyword: field for field in fields.fields}
        self._errors = errors
        self._function = function if is_async(function) else _in_thread(name, function)

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        backend = current_backend()
        values = self._decode(arguments)
        await backend.checkpoint()
        try:
            return await self._function(**values)
        except self._errors as error:
            msg = f"{type(error).__name__}: {error}"
            raise ToolError(msg) from error

    def _decode(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as values of the annotations.

        Raises:
            ToolError: They do not fit; the text names every fault with its path.
        """
        values: dict[str, Any] = {}
        faults = [f"unknown argument {brief(n)}" for n in arguments if n not in self._fields]
        for name, field in self._fields.items():
            if name in arguments:
                try:
                    values[name] = decode_value(field.hint, arguments[name])
                except DecodingError as error:
                    faults += [f"{name}{path}: {text}" for text, path in error.parts]
            elif field.is_required:
                faults.append(f"missing argument {name!r}")
        if faults:
            shown, left = faults[:_LISTED], len(faults) - _LISTED
            told = "; ".join([*shown, *([f"and {left} more faults"] if left > 0 else [])])
            names = ", ".join(self._fields) or "none"
            msg = f"wrong arguments for {self._name}: {told}. Its arguments are: {names}"
            raise ToolError(msg)
        return values


def _in_thread(name: str, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    def call(values: dict[str, Any]) -> Any:
        return function(**values)

    call.__qualname__ = name  # for messages
    step = ThreadStep(call, abandon_on_cancel=False)

    async def call_in_thread(**values: Any) -> Any:
        return await step(values)

    return call_in_thread


# -- the function ----------------------------------------------------------------------------------


def _check_function(function: Any) -> None:
    """Refuse what is no function of one result.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(function, Tool):
        msg = f"{function!r} is a tool already; expected a function"
        raise TypeError(msg)
    if not callable(function) or isinstance(function, type):
        kind = "the class" if isinstance(function, type) else "a value of"
        name = (function if isinstance(function, type) else type(function)).__name__
        msg = f"tool() was given {kind} {name}; expected a function: `tool(find_trains)`"
        raise TypeError(msg)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"{_name_of(function)} yields values; expected a function that returns one result"
        raise TypeError(msg)


def _check_errors(errors: Any) -> None:
    kinds: list[Any] = [*errors] if isinstance(errors, tuple) else [None]
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        told = brief(cast("Any", errors))
        msg = f"errors of tool() is {told}; expected classes of exceptions: `errors=(OSError,)`"
        raise TypeError(msg)


def _name_of(function: Any) -> str:
    plain = unbound(function)
    return getattr(plain, "__name__", type(plain).__name__)


def _fields_of(function: Any, name: str, notes: Mapping[str, str]) -> DataFields:
    """Return the parameters that a model chooses.

    Raises:
        TypeError: One cannot come from a model, or the annotations cannot be resolved.
    """
    plain = unbound(function)
    try:
        hints = resolve(plain if hasattr(plain, "__name__") else type(plain).__call__)
    except UNRESOLVED as error:
        msg = (
            f"cannot resolve the annotations of {name}: {error}; expected every name to be "
            "importable from its module (not under TYPE_CHECKING)"
        )
        raise TypeError(msg) from error
    bound: Any = getattr(function, "keywords", ()) if plain is not function else ()
    fields: list[DataField] = []
    faults: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in bound:
            continue
        fault = _fault_of(parameter, hints, name)
        if fault is not None:
            faults.append(fault)
        else:
            fields.append(_field_of(parameter, hints[parameter.name], notes))
    _refuse(name, faults)
    return DataFields(fields, is_closed=True)


def _fault_of(  # noqa: PLR0911 - one for each fault
    parameter: _KINDS, hints: Mapping[str, Any], name: str
) -> str | None:
    one = parameter.name
    if parameter.kind is _KINDS.VAR_POSITIONAL:
        return f"*{one}: expected a list, `{one}: list[str]`"
    if parameter.kind is _KINDS.VAR_KEYWORD:
        return f"**{one}: expected each argument by its name, or a dict, `{one}: dict[str, str]`"
    if parameter.kind is _KINDS.POSITIONAL_ONLY:
        return f"{one}: is positional only; expected the signature without `/`"
    if one not in hints:
        return f"{one}: has no annotation; expected its type, such as `{one}: str`"
    if is_context(hints[one]):
        return (
            f"{one}: is the context of a run, which no model can give; expected it bound by the "
            f"step: `tool(functools.partial({name}, {one}))`, with {one} as the first parameter"
        )
    if type(parameter.default).__name__ == "FieldInfo":
        text = text_of(hints[one])
        return (
            f"{one}: has a Field(...) as its default, which the function would be called with; "
            f"expected `{one}: Annotated[{text}, Field(...)]`"
        )
    return None


def _field_of(parameter: _KINDS, hint: Any, notes: Mapping[str, str]) -> DataField:
    is_required = parameter.default is _KINDS.empty
    described = note_of(hint) is not None or any(
        isinstance(getattr(extra, "description", None), str) for extra in extras_of(hint)
    )
    is_noted = parameter.name in notes and not described
    return DataField(
        parameter.name,
        (parameter.name,),
        hint,
        is_required,
        attrs.NOTHING if is_required else parameter.default,
        {"description": notes[parameter.name]} if is_noted else {},
    )


def _refuse(name: str, faults: list[str], expected: str = "") -> None:
    """Raise for the faults of a signature, if there are any.

    Raises:
        TypeError: There are.
    """
    if faults:
        msg = f"cannot make a tool of {name}: {'; '.join(faults)}{expected}"
        raise TypeError(msg)


# -- the schema ------------------------------------------------------------------------------------


def _schema_of(name: str, fields: DataFields) -> dict[str, Any]:
    """Return the schema of the arguments.

    Raises:
        TypeError: A part of them cannot come from JSON.
    """
    try:
        schema = schema_of_fields(fields)
    except TypeError as error:
        msg = f"cannot make a tool of {name}: {error}"
        raise TypeError(msg) from error
    definitions: dict[str, Any] = schema.get("$defs", {})
    faults = [
        f"{path}: {text_of(field.hint) if path == field.keyword else 'it'} cannot come from a model"
        for field in fields.fields
        for path in dict.fromkeys(
            _impossible(schema["properties"][field.keyword], definitions, field.keyword, set())
        )
    ]
    _refuse(name, faults, f"; expected {_POSSIBLE}")
    return schema


def _impossible(
    part: Any, definitions: Mapping[str, Any], path: str, seen: set[str]
) -> Iterator[str]:
    """Yield the paths in a schema at which no data fits."""
    if not isinstance(part, dict):
        return
    schema = cast("dict[str, Any]", part)
    if schema.get("not") == {}:
        yield path
    reference = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if reference in definitions and reference not in seen:
        yield from _impossible(definitions[reference], definitions, path, seen | {reference})
    for name, inner in schema.get("properties", {}).items():
        yield from _impossible(inner, definitions, f"{path}.{name}", seen)
    for number, inner in enumerate(schema.get("prefixItems", ())):
        yield from _impossible(inner, definitions, f"{path}[{number}]", seen)
    for key in ("items", "additionalProperties"):
        yield from _impossible(schema.get(key), definitions, f"{path}[...]", seen)
    for key in ("anyOf", "allOf", "oneOf"):
        for inner in schema.get(key, ()):
            yield from _impossible(inner, definitions, path, seen)


# -- the docstring ---------------------------------------------------------------------------------


def _read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring, and its description of each parameter."""
    lines = doc.splitlines()
    end = next((n for n, line in enumerate(lines) if _HEADING.match(line)), len(lines))
    notes: dict[str, list[str]] = {}
    form: re.Pattern[str] | None = None
    inside: int | None = None
    current: list[str] = []
    for number, line in enumerate(lines[end:], end):
        indent = len(line) - len(line.lstrip())
        line = line.strip()
        if not line or set(line) <= {"-"}:
            continue
        if indent == 0 and (found := _SPHINX.fullmatch(line)):
            form, inside = None, 0
            current = notes[found[1]] = [found[2]]
        elif indent == 0 and _HEADING.match(line):
            is_underlined = lines[number + 1 : number + 2] and set(lines[number + 1]) == {"-"}
            form = (_NUMPY if is_underlined else _GOOGLE) if _ARGUMENTS.fullmatch(line) else None
            inside, current = None, []
        elif form is not None and inside in (None, indent):
            inside, found = indent, form.fullmatch(line)
            current = notes.setdefault(found[1], [found[2] or ""]) if found else []
        elif inside is not None and indent > inside:
            current.append(line)
    told = {name: " ".join(filter(None, parts)) for name, parts in notes.items()}
    return "\n".join(lines[:end]).strip(), told
