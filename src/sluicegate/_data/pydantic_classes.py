"""Pydantic's models, dataclasses and secrets: read and built with none of their functions run."""

from __future__ import annotations

import functools
from typing import Any, cast

import attrs

from sluicegate._annotations import fits
from sluicegate._data.builtins import refuse_content, reported
from sluicegate._data.fields import convert, pydantic_config, pydantic_fields
from sluicegate._data.form import (
    ANYTHING,
    MODEL_STATE,
    Field,
    Form,
    defaults_of,
    kinds_of_field,
    looks_of,
)
from sluicegate._errors import brief


_OBJECT: Any = object


def field_of_pydantic(field: Any) -> Field:
    hint = field.annotation
    if field.is_required():
        return Field(is_set=getattr(field, "init", None) is not False, hint=hint, is_loose=True)

    def make(holder: Any) -> Any:
        options: dict[str, Any] = {"call_default_factory": True}
        if getattr(field, "default_factory_takes_validated_data", False):
            options["validated_data"] = dict(holder.__dict__)
        made = field.get_default(**options)
        # What the class would convert is converted, as far as that needs no function of its own.
        return convert(hint, made)[0] if field.validate_default and not fits(hint, made) else made

    default = attrs.NOTHING if field.default_factory is not None else field.default
    return Field(default, make=make, hint=hint, is_loose=True)


def secret_form(cls: Any) -> Form:
    """Describe a secret of pydantic: what it hides is written as it is."""

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
            if part is not None or getattr(cls, name, MODEL_STATE) is not None:  # a RootModel's is
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
    """Fit what a model holds beside its fields to the class as it is now."""
    extra: dict[Any, Any] | None = values.get("__pydantic_extra__")
    fields_set: set[Any] = values.get("__pydantic_fields_set__", set())
    is_open = pydantic_config(cls).get("extra") == "allow"
    for name in [*(extra or ())]:
        if name in fields and name not in values:  # it is a field by now
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
