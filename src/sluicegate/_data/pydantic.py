"""Values and classes of pydantic: recognised, kept in snapshots, and made from outside data.

Snapshots split and join them without running validators. Pydantic itself makes values from outside
data. It is imported only when such a value is written or read.
"""

from __future__ import annotations

import functools
import sys
import typing
from typing import TYPE_CHECKING, Any, Union, cast

import attrs

from sluicegate._annotations import ANYTHING, ATOMS, class_of, fits, is_union, text_of
from sluicegate._data.builtins import Row
from sluicegate._data.form import MODEL_STATE, Field, Form, defaults_of, kinds_of_field, looks_of
from sluicegate._data.refusals import DecodingError, refuse_content, reported
from sluicegate._errors import brief
from sluicegate._foreign import is_field_info, is_function, is_instance_of, is_of


if TYPE_CHECKING:
    from collections.abc import Callable

#: The prefix of the tags of these values.
PREFIX = "pydantic:"

_TEXT, _INT = ((str,),), ((int,),)
_OBJECT: Any = object
#: The type of pydantic that imports a name in the data.
_IMPORTING = ("pydantic", "ImportString")


def is_pydantic(kind: Any) -> bool:
    """Whether pydantic makes the values of an annotation: its models, dataclasses and types.

    Events have a core schema for pydantic, but pydantic does not make them.
    """
    cls: Any = class_of(kind)
    if cls is typing.Annotated:
        return any(map(is_for_pydantic, kind.__metadata__)) or is_pydantic(kind.__origin__)
    if (
        "pydantic" not in sys.modules
        or not isinstance(cls, type)
        or hasattr(cls, "__attrs_attrs__")
    ):
        return False
    marks = ("__get_pydantic_core_schema__", "__pydantic_validator__")
    return cls.__module__.partition(".")[0] == "pydantic_core" or any(
        hasattr(cls, mark) for mark in marks
    )


# -- recognising ------------------------------------------------------------------------------------


def is_pydantics_own(cls: type) -> bool:
    """Whether a class is defined by pydantic itself."""
    return cls.__module__.partition(".")[0] in ("pydantic", "pydantic_core")


def is_secret(cls: type) -> bool:
    """Whether the values of a class hide their content, as ``SecretStr`` does."""
    types: Any = sys.modules.get("pydantic.types")
    bases = tuple(getattr(types, name) for name in ("Secret", "SecretStr", "SecretBytes") if types)
    return bool(bases) and issubclass(cls, bases)


def is_for_pydantic(part: Any) -> bool:
    """Whether a part of ``Annotated`` makes pydantic convert, so is no constraint or description."""
    if is_field_info(part):
        said = [*getattr(part, "metadata", ()), getattr(part, "discriminator", None)]
        return any(one is not None for one in said)
    if is_instance_of(part, "pydantic", "UrlConstraints"):
        return True
    is_hook = hasattr(part, "__get_pydantic_core_schema__") and not isinstance(part, type)
    return is_function(part) or is_hook


# -- fields ----------------------------------------------------------------------


def pydantic_fields(cls: Any) -> dict[str, Any]:
    """Return the fields of a pydantic model or dataclass, by name."""
    fields: dict[str, Any] | None = cls.__dict__.get("__pydantic_fields__")
    return fields if fields is not None else getattr(cls, "model_fields", {})


def pydantic_config(cls: Any) -> dict[str, Any]:
    """Return the configuration of a pydantic model or dataclass."""
    return getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}


def is_strict(metadata: Any) -> bool:
    return getattr(metadata, "strict", None) is True


@functools.cache
def _core() -> frozenset[Any]:
    """Return the classes to which pydantic's core converts without calling user code."""
    import datetime as dt  # noqa: PLC0415 - not at start-up
    from decimal import Decimal  # noqa: PLC0415
    from uuid import UUID  # noqa: PLC0415

    dates = {dt.date, dt.datetime, dt.time, dt.timedelta}
    return frozenset({*ATOMS, *dates, complex, Decimal, UUID, Any})


_CONTAINERS = (list, dict, set, frozenset, tuple)


def _bare(hint: Any) -> Any:
    """Return an annotation of core types without its functions and constraints.

    Raises:
        LookupError: A part of it is not a core type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        if any(map(is_strict, arguments[1:])):
            raise LookupError
        return _bare(arguments[0])
    if hint in (None, ...) or origin is typing.Literal:
        return hint
    if is_union(hint):
        return Union[tuple(map(_bare, arguments))]  # noqa: UP007 - made here
    if origin in _CONTAINERS:
        return cast("Any", origin)[tuple(map(_bare, arguments))]
    if hint in _core() or hint in _CONTAINERS:
        return hint
    raise LookupError


def convert(hint: Any, value: Any) -> tuple[Any, Exception | None]:
    """Convert a value as pydantic's core does, without the functions in the annotation.

    Returns:
        The converted value and None; or the value and the error.
    """
    from pydantic import TypeAdapter  # noqa: PLC0415 - it is there: the class is one of pydantic's

    try:
        adapter: Any = TypeAdapter(_bare(hint))
        return adapter.validate_python(value), None
    except (LookupError, ValueError, TypeError) as error:
        return value, error


# -- snapshots --------------------------------------------------------------------------------------


def url_row(cls: Any) -> Row | None:
    """Return the row of a URL class of pydantic, or None for another class."""
    networks: Any = sys.modules.get("pydantic.networks")
    bases = (getattr(networks, "_BaseUrl", None), getattr(networks, "_BaseMultiHostUrl", None))
    for base, inner in zip(bases, ("Url", "MultiHostUrl"), strict=True):
        if isinstance(base, type) and issubclass(cls, base):
            return _make_url_row(cls, inner)
    return None


def _make_url_row(cls: Any, inner: str) -> Row:
    def join(text: str) -> Any:
        made = object.__new__(cls)
        object.__setattr__(made, "_url", _parsed(inner)(text))
        return made

    return Row(cls, "", _TEXT, lambda value: (str(value._url),), join)


def _parsed(name: str) -> Callable[[str], Any]:
    """Return a function that makes a URL of its text without changing the text."""
    import pydantic_core  # noqa: PLC0415 - see above

    kind: Any = getattr(pydantic_core, name)

    def parse(text: str) -> Any:
        plain = kind(text)
        return plain if str(plain) == text else kind(text, preserve_empty_path=True)

    return parse


@functools.cache
def pydantic_rows() -> tuple[Row, ...]:
    """Return the rows of pydantic's own classes; none if it is not installed."""
    try:
        import pydantic_core  # noqa: PLC0415 - see above
        from pydantic import networks, types  # noqa: PLC0415
    except ImportError:
        return ()
    made = [
        Row(types.ByteSize, "ByteSize", _INT, lambda value: (int(value),), types.ByteSize),
        Row(
            networks.NameEmail,
            "NameEmail",
            _TEXT * 2,
            lambda value: (value.name, value.email),
            networks.NameEmail,
        ),
        Row(
            pydantic_core.TzInfo,
            "TzInfo",
            _INT,
            lambda value: (_seconds_of(value),),
            pydantic_core.TzInfo,
        ),
    ]
    for name in ("Url", "MultiHostUrl"):
        kind: Any = getattr(pydantic_core, name)
        made.append(Row(kind, name, _TEXT, lambda value: (str(value),), _parsed(name)))
    for cls in vars(networks).values():
        row = url_row(cls) if isinstance(cls, type) and not cls.__name__.startswith("_") else None
        if row is not None:
            made.append(Row(cls, cls.__name__, row.shape, row.split, row.join))
    return tuple(made)


def _seconds_of(zone: Any) -> int:
    return int(zone.utcoffset(None).total_seconds())


def field_of_pydantic(field: Any) -> Field:
    hint = field.annotation
    if field.is_required():
        return Field(is_set=getattr(field, "init", None) is not False, hint=hint, is_loose=True)

    def make(holder: Any) -> Any:
        options: dict[str, Any] = {"call_default_factory": True}
        if getattr(field, "default_factory_takes_validated_data", False):
            options["validated_data"] = dict(holder.__dict__)
        made = field.get_default(**options)
        # Convert a default as the class does, as far as that needs no user code.
        return convert(hint, made)[0] if field.validate_default and not fits(hint, made) else made

    default = attrs.NOTHING if field.default_factory is not None else field.default
    return Field(default, make=make, hint=hint, is_loose=True)


def secret_form(cls: Any) -> Form:
    """Return the form of a secret of pydantic, whose content is written as plain text."""

    def build(values: dict[str, Any], _rest: dict[str, Any]) -> Any:
        made = _OBJECT.__new__(cls)
        object.__setattr__(made, "_secret_value", values["_secret_value"])
        return made

    held = "_secret_value"
    return Form(
        cls, {held: ANYTHING}, frozenset({held}), [], lambda v: {held: v._secret_value}, build
    )


def model_form(cls: Any) -> Form:
    fields = {name: field_of_pydantic(field) for name, field in pydantic_fields(cls).items()}
    hints: dict[str, Any] = {name: field.hint for name, field in fields.items()}

    def read(value: Any) -> dict[str, Any]:
        held = value.__dict__
        made = {name: held[name] for name in fields if name in held}
        state = {name: getattr(value, name) for name in MODEL_STATE}
        made.update((name, part) for name, part in state.items() if part is not None)
        return made

    def build(values: dict[str, Any], _rest: dict[str, Any]) -> Any:
        state = {name: values.pop(name, None) for name in MODEL_STATE}
        made = _OBJECT.__new__(cls)
        object.__setattr__(made, "__dict__", values)
        for name, part in state.items():
            if part is not None or getattr(cls, name, MODEL_STATE) is not None:  # as in a RootModel
                object.__setattr__(made, name, part)
        return made

    return Form(
        cls,
        {**{name: kinds_of_field(hints, name, f.default) for name, f in fields.items()}, **MODEL_STATE},
        frozenset({*fields, "__pydantic_fields_set__"}),
        list(hints.values()),
        read,
        build,
        defaults=defaults_of(fields, hints, build),
        looks=looks_of(hints, fields),
        loose=frozenset(fields),
        settle=functools.partial(_settle_model, cls, fields),
    )  # fmt: skip


def _settle_model(cls: Any, fields: dict[str, Any], values: dict[str, Any], *, drops: bool) -> None:
    """Fit the state of a model beside its fields to the class as it is now."""
    extra: dict[Any, Any] | None = values.get("__pydantic_extra__")
    fields_set: set[Any] = values.get("__pydantic_fields_set__", set())
    is_open = pydantic_config(cls).get("extra") == "allow"
    for name in [*(extra or ())]:
        if name in fields and name not in values:  # it has become a field
            values[name] = cast("Any", extra).pop(name)
        elif type(name) is not str or name in fields:
            refuse_content("__pydantic_extra__ has a key that is no name, or that of a field")
    if not is_open and extra is not None:
        if not drops:
            refuse_content(
                f"{cls.__name__} takes no extra fields, and the data has "
                f"{', '.join(map(brief, extra)) or 'room for some'} (to leave them out: "
                "resume(snapshot, drop_removed_fields=True))"
            )
        del values["__pydantic_extra__"]
        extra = None
    if is_open and extra is None:
        extra = values["__pydantic_extra__"] = {}
    if drops:
        fields_set &= {*fields, *(extra or ())}
    if not fields_set <= {*fields, *(extra or ())}:
        refuse_content(f"__pydantic_fields_set__ has a field that {cls.__name__} has not")
    _settle_private(cls, values, drops=drops)


def _settle_private(cls: Any, values: dict[str, Any], *, drops: bool) -> None:
    declared: dict[str, Any] = cls.__private_attributes__
    held: dict[Any, Any] = values.get("__pydantic_private__") or {}
    lost = [name for name in held if name not in declared]
    if lost and not drops:
        refuse_content(
            f"__pydantic_private__ has {', '.join(map(brief, lost))}, an attribute that "
            f"{cls.__name__} has not (to leave it out: resume(snapshot, drop_removed_fields=True))"
        )
    if not declared:
        values.pop("__pydantic_private__", None)
        return
    kept = {name: part for name, part in held.items() if name in declared}
    for name, attribute in declared.items():
        if name not in kept:
            with reported():
                factory = attribute.default_factory
                made = attribute.get_default() if factory is None else factory()
            if type(made).__name__ != "PydanticUndefinedType":
                kept[name] = made
    values["__pydantic_private__"] = kept


# -- from outside -----------------------------------------------------------------------------------


def decode_by_pydantic(hint: Any, value: Any) -> Any:
    """Return the value that pydantic makes for an annotation.

    Raises:
        DecodingError: The value does not fit.
    """
    cls: Any = class_of(hint)
    if hint is cls and isinstance(cls, type) and isinstance(value, cls):
        return value
    if _imports_by_name(hint):
        msg = "pydantic's ImportString imports the module that the data names; expected a str"
        raise DecodingError(msg)
    return validated(hint, value, is_json=True)


def validated(hint: Any, value: Any, *, is_json: bool) -> Any:
    """Return a value as pydantic makes it; with ``is_json``, by its rules for JSON."""
    import json  # noqa: PLC0415 - pydantic is in use by now

    import pydantic  # noqa: PLC0415

    text: str | None = None
    if is_json:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            text = None  # it has objects, such as the dates of TOML
    try:
        adapter: Any = pydantic.TypeAdapter(hint)
        return adapter.validate_python(value) if text is None else adapter.validate_json(text)
    except pydantic.ValidationError as error:
        raise _told(error) from error
    except RecursionError:
        raise
    except Exception as error:  # from a validator, or because the type has no schema
        msg = f"{text_of(hint)} refuses it: {error}"
        raise DecodingError(msg) from error


def _told(error: Any) -> DecodingError:
    """Return the errors of pydantic as one error with the paths of the fields."""
    found: list[dict[str, Any]] = error.errors(
        include_url=False, include_context=False, include_input=False
    )
    told = DecodingError("")
    told.parts = [(one["msg"], _path(one["loc"])) for one in found]
    return told


def _path(place: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _class_of(value: Any) -> Any:
    return cast("Any", type(value))


def _imports_by_name(hint: Any) -> bool:
    """Whether a part of an annotation makes pydantic import a name in the data."""
    todo: list[Any] = [hint]
    seen: list[Any] = []
    while todo:
        part = todo.pop()
        if any(part is one for one in seen):
            continue
        seen.append(part)
        for one in (part, *map(_class_of, getattr(part, "__metadata__", ()))):
            if getattr(one, "__name__", "") == "ImportString" and is_of(one, *_IMPORTING):
                return True
        todo += typing.get_args(part)
        cls: Any = class_of(part)
        for fields in ("model_fields", "__pydantic_fields__"):
            held: Any = getattr(cls, fields, None)
            if isinstance(held, dict):
                for field in cast("dict[str, Any]", held).values():
                    todo += [field.annotation, *field.metadata]
    return False
